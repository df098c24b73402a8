"""Call a module with other tensors in the places of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from blo._swaps import swapped
from blo._torch import tensor_dicts


def call_with(
    module: nn.Module, state: dict[str, Tensor], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Any:
    """Return the module's output with these parameters and buffers, and leave the module as it was.

    `torch.func.functional_call` does not: if a submodule has two names, it leaves the given tensors in it.

    Args:
        module: the module.
        state: a dict from names to tensors. If the module assigns another tensor to one of these names during the
            call, the dict holds that tensor afterwards.
        arguments: positional arguments of the module.
        keywords: keyword arguments of the module.

    Raises:
        StructureError: if another thread is evaluating the module, or one that shares parts with it.
    """
    places = {name: _place(module, name) for name in state}
    with swapped(((attributes, leaf, state[name]) for name, (attributes, leaf) in places.items()), alone=True):
        try:
            return module(*arguments, **keywords)
        finally:
            for name, (attributes, leaf) in places.items():
                state[name] = attributes[leaf]


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    parameters, buffers = tensor_dicts(owner)
    return parameters if leaf in parameters else buffers, leaf
