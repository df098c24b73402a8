"""Evaluates functions with other tensors in the places of those that they capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blo import tree
from blo._torch import functorch
from blo._types import Tree


class Exchange(TorchFunctionMode):
    """Replaces some tensors among the arguments of torch functions by others, also inside the wrappers of a `vmap`."""

    def __init__(self, replacement: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._replacement = replacement

    def swapped(self, used: Tree) -> Tree:
        """Return a tree in which these tensors are replaced."""
        return tree.map(self._other, used)

    def _other(self, leaf: Any) -> Any:
        if id(leaf) in self._replacement:
            return self._replacement[id(leaf)]
        if not isinstance(leaf, Tensor) or not functorch.is_batchedtensor(leaf):
            return leaf
        inside = functorch.get_unwrapped(leaf)
        other = self._other(inside)
        if other is inside:
            return leaf
        return functorch._add_batch_dim(other, functorch.maybe_get_bdim(leaf), functorch.maybe_get_level(leaf))

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = self.swapped((args, dict(kwargs or {})))
        return function(*args, **kwargs)


def in_transform(function: Callable[..., Tree], *arguments: Tree) -> Tree:
    """Return `function(*arguments)`, computed inside a transform that has no effect of its own.

    Outside transforms `autograd.Function.apply` passes through no mode that could replace its arguments, and a nested
    `argmin` takes what it captures for constants.
    """
    others: list[Any] = []

    def evaluate(anchor: Tensor, arguments: tuple[Tree, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves, spec = tree.structure(function(*arguments))
        others[:] = [spec, *(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)]
        return anchor, tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    # The transform takes every argument, and differentiates in the anchor alone, which costs nothing.
    anchor = torch.zeros((), device="cpu")
    found = iter(torch.func.grad(evaluate, has_aux=True)(anchor, arguments)[1])
    spec, *leaves = others
    return tree.unflatten([next(found) if leaf is None else leaf for leaf in leaves], spec)
