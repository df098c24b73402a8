"""Call a model with other tensors in the places of its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adv_train.errors import UserError


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model that require grad, by name: those that training changes."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class Weights:
    """The places of a model's parameters.

    `torch.func.functional_call` traverses all modules in each call to find these places, which takes as long as several
    layers of a small network. A step finds them once and calls the model several times.

    Args:
        model: The model. Its modules and their parameters must stay the same objects while this instance is in use.

    Raises:
        UserError: If a part of the model holds its parameters where they cannot be exchanged.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places: dict[str, list[tuple[dict[str, Tensor | None], str]]] = {}
        names: dict[int, str] = {}
        for prefix, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule | nn.DataParallel):
                raise UserError(
                    f"`{prefix or 'model'}` is a {type(module).__name__}, whose parameters cannot be exchanged in a "
                    "training step. Pass the module that it was made from."
                )
            for leaf, parameter in module._parameters.items():
                if parameter is not None:  # Parameters that modules share have the first of their names.
                    name = names.setdefault(id(parameter), f"{prefix}.{leaf}" if prefix else leaf)
                    self._places.setdefault(name, []).append((module._parameters, leaf))

    def __call__(self, params: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the model's output with these parameters; parameters that are not in `params` keep their values."""
        own = []
        try:
            for name, value in params.items():
                for owner, leaf in self._places[name]:
                    own.append((owner, leaf, owner[leaf]))
                    owner[leaf] = value
            output: Tensor = self._model(images)
        finally:
            for owner, leaf, parameter in own:
                owner[leaf] = parameter
        return output
