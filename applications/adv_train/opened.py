"""Open a model together with the data to evaluate it on, from a run folder or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from adv_train import data, models
from adv_train.devices import own_device
from adv_train.errors import UserError
from adv_train.judged_data import check_fits
from adv_train.loading import build_model, load_checkpoint, load_data
from adv_train.ranks import current
from adv_train.records import RunFolder
from adv_train.threat import Threat


@dataclass(frozen=True, eq=False)
class Opened:
    """A model and the data to evaluate it on.

    Attributes:
        model: The model in eval mode, on its device.
        dataset: The whole data set, on the CPU.
        about: Entries of the record that describe the model: checkpoint, epoch and method, or the model's name.
        trained: The threat that the model was trained for; None if it is not known.
    """

    model: nn.Module
    dataset: data.Dataset
    about: Mapping[str, Any]
    trained: Threat | None = None


def open_run(
    path: Path, which: str, *, device: str | None, data_name: str | None = None, data_root: str | None = None
) -> Opened:
    """Open a checkpoint of a run with the data that it was trained on.

    Args:
        path: The run folder.
        which: ``"best"`` or ``"last"``.
        device: Device for the model; by default the fastest available.
        data_name: Current path of an image folder, as ``imagefolder:PATH``.
        data_root: Folder of the data sets; by default the folder that training used.

    Raises:
        UserError: If the run or its data cannot be used.
    """
    run = RunFolder(path)
    saved = load_checkpoint(run, which)
    config = saved.config
    where = own_device(device or "auto")
    kind, _, place = (data_name or config.data.name).partition(":")
    if kind != config.data.name.partition(":")[0]:
        raise UserError(f"The run was trained on {config.data.name}, so it cannot be evaluated on {data_name}.")
    with current().in_turn():
        dataset = load_data(config, run.split(), root=data_root, path=place if data_name and place else None)
    run.check_split(dataset)
    check_fits(dataset, dict(saved.model_arguments), data_name or config.data.name)
    about = {
        "checkpoint": run.best.name if which == "best" else run.last.name,
        "epoch": saved.epoch,
        "method": config.method_name,
        **({"averaged": saved.averaged} if saved.averaged else {}),
    }
    return Opened(build_model(saved).to(where), dataset, about, config.threat)


def open_weights(
    model_name: str,
    data_name: str,
    *,
    weights: Path | None,
    normalisation: Literal["data", "none"] | None,
    device: str | None,
    data_root: str,
) -> Opened:
    """Open a model that was not trained here, with the data to evaluate it on.

    Args:
        model_name: A name of `adv_train.models.MODELS.names()`, optionally with options, such as
            ``wrn-28-10(activation=silu)``; ``torchvision:NETWORK``, or ``package.module:factory``.
        data_name: Name of the data set.
        weights: File of the weights; None if the factory returns a trained model.
        normalisation: For weights without mean and standard deviation, as in `adv_train.models.load_weights`.
        device: Device for the model; by default the fastest available.
        data_root: Folder of the data sets.

    Raises:
        UserError: If the model, its weights or the data cannot be used.
    """
    where = own_device(device or "auto")
    with current().in_turn():
        dataset = data.load(data_name, root=data_root)
    arguments: dict[str, Any] = dataset.model_arguments()
    name, options = (model_name, {}) if ":" in model_name else models.MODELS.parsed(model_name, "model")
    model = models.create(name, **arguments, seed=0, **options)
    if weights is not None:
        defaults = {} if ":" in name else {key: leaf.default for key, leaf in models.MODELS.options(name).items()}
        models.load_weights(model, weights, normalisation, {"name": name, **defaults, **options})
    about = {"checkpoint": weights.name if weights else model_name, "model": model_name}
    return Opened(model.to(where).eval(), dataset, about)
