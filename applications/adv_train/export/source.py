"""The model to export, and its description."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train.checkpoint import Checkpoint
from adv_train.judged_data import own_version
from adv_train.loading import build_model, open_checkpoint
from adv_train.models.foreign import NORMALISATION


@dataclass(frozen=True, eq=False)
class Source:
    """A trained model.

    Attributes:
        model: The model on the CPU and in eval mode; it takes images in [0, 1].
        shape: Shape of an image, ``(channels, height, width)``.
        about: Description of the model, in plain values.
        checkpoint: The checkpoint that it was loaded from; None for a module.
        folder: The run folder, or the folder of the checkpoint file; None for a module.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    about: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    folder: Path | None = None

    @classmethod
    def of_run(cls, path: Path, which: str) -> Source:
        """Load the model of a run folder, or of a checkpoint file.

        Raises:
            UserError: If there is no such run, or its checkpoint is missing, damaged or belongs to another run.
        """
        saved = open_checkpoint(path, which)
        config, model = saved.config, build_model(saved)
        arguments = {**saved.model_arguments, **_statistics(model, saved.model_arguments)}
        about = {
            "model": config.model.name,
            "model_options": dict(config.model.options),
            **arguments,
            "data": config.data.name,
            "method": config.method_name,
            "norm": config.threat.norm,
            "eps": config.threat.eps,
            "epoch": saved.epoch,
            "averaged": saved.averaged,
            **_versions(),
        }
        shape = (arguments["channels"], arguments["image_size"], arguments["image_size"])
        folder = path if path.is_dir() else path.parent
        return cls(model, shape, about, saved, folder)

    @classmethod
    def of_module(cls, model: nn.Module, shape: tuple[int, int, int]) -> Source:
        """Copy a module that maps images in [0, 1] to logits."""
        about = {"model": type(model).__name__, "channels": shape[0], "image_size": shape[1], **_versions()}
        return cls(copy.deepcopy(model).cpu().eval(), shape, about)

    def images(self, number: int) -> Tensor:
        """Draw images uniformly in [0, 1], with a fixed seed."""
        return torch.rand(number, *self.shape, generator=torch.Generator().manual_seed(number))

    def blank(self) -> nn.Module:
        """Return a copy of the model whose parameters and buffers are zero, so that a file must supply all of them."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for value in model.state_dict().values():
                value.zero_()
        return model


def _statistics(model: nn.Module, given: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the mean and the standard deviation of each channel that the model normalises with.

    They may differ from those of the training images, because weights to start from bring their own.

    Args:
        model: The model; if it has no layer `normalise`, nothing is returned.
        given: The ``mean`` and ``std`` that the model was built with. They are returned if the layer has them, since
            they have more digits.
    """
    state, found = model.state_dict(), {}
    for key, name in zip(("mean", "std"), NORMALISATION, strict=True):
        if name in state:
            own = state[name].flatten()
            built_with = torch.tensor(given[key], dtype=own.dtype)
            found[key] = list(given[key]) if torch.equal(own, built_with) else own.tolist()
    return found


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "blo": own_version()}
