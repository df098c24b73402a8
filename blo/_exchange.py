"""Call a module with other tensors in the places of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def call_with(
    module: nn.Module, state: dict[str, Tensor], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Any:
    """Return the module's output with these parameters and buffers, and leave the module as it was.

    `torch.func.functional_call` does not: of a module with two names, it puts a given tensor back in the place of the
    module's own.

    Args:
        module: the module.
        state: tensors by name. What the module assigns to a name during the call comes back in it.
        arguments: positional arguments of the module.
        keywords: keyword arguments of the module.
    """
    places = {name: _place(module, name) for name in state}
    own = {(id(attributes), leaf): (attributes, leaf, attributes[leaf]) for attributes, leaf in places.values()}
    try:
        for name, (attributes, leaf) in places.items():
            attributes[leaf] = state[name]
        return module(*arguments, **keywords)
    finally:
        for name, (attributes, leaf) in places.items():
            state[name] = attributes[leaf]
        for attributes, leaf, tensor in own.values():
            attributes[leaf] = tensor


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    return owner._parameters if leaf in owner._parameters else owner._buffers, leaf
