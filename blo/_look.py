"""Finds operations whose derivative in torch is wrong, in the graph of an objective's first value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blo import tree
from blo._formulas import Formulas
from blo._layers import shortened, weight_norm
from blo._torch import fused_weight_norm, versions
from blo.errors import StructureError


class Searched:
    """A function of theta, z and possibly a step number, whose first graphs are searched for wrong derivatives.

    These are the fused weight norm and a cross-entropy in chunks, whose second derivatives are wrong in torch, and
    embeddings with gradients that are sparse or divided by counts. If there is one, all values are computed by formulas
    instead. The graph is searched once for a theta that requires grad and once for one that does not, at a microsecond
    for each operation. Compilers and later evaluations are not affected.

    Raises:
        StructureError: when called, if the function writes to its arguments.
    """

    def __init__(self, function: Callable[..., Any], name: str = "objective") -> None:
        self._function, self._name = function, name
        self._seen: set[bool] = set()
        self._by_formulas = False
        self._passed: Any = object()  # the last theta for which nothing wrong was found

    def __call__(self, theta: Any, z: Any, *step: int) -> Any:
        if theta is self._passed or torch.compiler.is_compiling():  # a solver calls with one theta again and again
            return self._function(theta, z, *step)
        if self._by_formulas:
            with Formulas(_FORMULAS):
                return self._function(theta, z, *step)
        # Without gradients there is no graph to search, so the search is left to a later evaluation.
        if not torch.is_grad_enabled():
            return self._function(theta, z, *step)
        upper = tree.tensors(theta)
        live = any(leaf.requires_grad for leaf in upper)
        if live in self._seen:
            self._passed = theta
            return self._function(theta, z, *step)
        given = [*upper, *tree.tensors(z)]
        before = versions(given)
        value = self._function(theta, z, *step)
        self._seen.add(live)
        if versions(given) != before:
            raise StructureError(
                f"`{self._name}` must not write to theta or z, but does, as embeddings with max_norm do: its "
                "derivative would not be that of the value. Compute the changed tensor by operations that autograd "
                "records; for a module use blo.functionalize."
            )
        if _misleads(tree.tensors(value), given):
            self._by_formulas, self._passed = True, object()
            return self(theta, z, *step)
        self._passed = theta
        return value


def _misleads(values: Iterable[Tensor], inputs: Iterable[Tensor]) -> bool:
    """Return whether an operation between inputs and values has a wrong derivative."""
    seen = {tensor.grad_fn for tensor in inputs}  # operations before the inputs do not belong to the function
    nodes = [value.grad_fn for value in values]
    # A loop, since a graph may be deeper than Python allows recursions to be.
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        suspect = _suspect(type(node))
        if suspect is not None and any(getattr(node, flag, False) for flag in suspect):
            return True
        for before, _ in node.next_functions:
            nodes.append(before)  # a comprehension would be a call for each node
    return False


@cache
def _suspect(kind: type) -> tuple[str, ...] | None:
    """Return the attributes of a node of that class that, if one is true, make its derivative wrong; None: no such."""
    name = kind.__name__
    if name.startswith("WeightNormInterface"):
        return ("next_functions",)  # always
    if "linear_cross_entropy" in name:
        return ("allow_retain_graph",)
    return ("_saved_scale_grad_by_freq", "_saved_sparse") if name.startswith("Embedding") else None


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    rows = F.embedding(input, weight, padding_idx)
    return rows if max_norm is None else shortened(rows, max_norm, norm_type)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    *rest: Any,
    **more: Any,
) -> Tensor:
    table = weight if max_norm is None else shortened(weight, max_norm, norm_type)
    return F.embedding_bag(input, table, offsets, None, 2.0, False, mode, False, *rest, **more)


def _linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """Return the loss without chunks: torch treats the gradient of chunks as a constant."""
    found: Tensor = F.linear_cross_entropy(*args, **kwargs)
    return found


_FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    fused_weight_norm: lambda v, g, dim=0: weight_norm(dim, g, v),
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
}
if hasattr(F, "linear_cross_entropy"):  # in newer torch
    _FORMULAS[F.linear_cross_entropy] = _linear_cross_entropy
