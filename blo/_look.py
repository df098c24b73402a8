"""What torch differentiates by another rule than the value has, found in the graph of an objective's first value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from blo import tree
from blo._layers import shortened, weight_norm
from blo._torch import fused_weight_norm
from blo._watch import versions
from blo.errors import StructureError


class Looked:
    """A function of theta and z, or of these and the number of a step, whose first values are looked at.

    Where they were computed by the fused weight norm or by a cross-entropy in chunks, whose second derivatives torch
    has wrong, or by embeddings with gradients that are sparse or divided by counts, all values are computed with
    formulas in the place of these. The graph is walked once with a theta that requires grad and once without, at a
    microsecond for each operation, so that neither a compiler nor later evaluations notice.

    Raises:
        StructureError: when called, if the function writes to its arguments.
    """

    def __init__(self, function: Callable[..., Any], name: str = "objective") -> None:
        self._function, self._name = function, name
        self._seen: set[bool] = set()
        self._by_formulas = False
        self._passed: Any = object()  # the theta with which the function was found to be in order

    def __call__(self, theta: Any, z: Any, *step: int) -> Any:
        if theta is self._passed or torch.compiler.is_compiling():  # a solver calls with one theta again and again
            return self._function(theta, z, *step)
        if self._by_formulas:
            with _Formulas():
                return self._function(theta, z, *step)
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
                "derivative would not be that of the value. Compute what is changed by operations that autograd "
                "records; for a module use blo.functionalize."
            )
        if _misleads(tree.tensors(value), given):
            self._by_formulas, self._passed = True, object()
            return self(theta, z, *step)
        self._passed = theta
        return value


def _misleads(values: Iterable[Tensor], inputs: Iterable[Tensor]) -> bool:
    """Tell whether an operation between inputs and values has other derivatives than its value."""
    seen = {tensor.grad_fn for tensor in inputs}  # what comes before the arguments is none of the function
    nodes = [value.grad_fn for value in values]
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
    """Return which attributes of a node of that class, when true, make its derivative another; None: it has none."""
    name = kind.__name__
    if name.startswith("WeightNormInterface"):
        return ("next_functions",)  # always
    if "linear_cross_entropy" in name:
        return ("allow_retain_graph",)
    return ("_saved_scale_grad_by_freq", "_saved_sparse") if name.startswith("Embedding") else None


class _Formulas(TorchFunctionMode):
    """Computes such operations by formulas."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _FORMULAS.get(function, function)(*args, **(kwargs or {}))


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
    """Return the loss without chunks, whose gradient torch takes for a constant."""
    found: Tensor = F.linear_cross_entropy(*args, **kwargs)
    return found


_FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    fused_weight_norm: lambda v, g, dim=0: weight_norm(dim, g, v),
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
}
if hasattr(F, "linear_cross_entropy"):  # in newer torch
    _FORMULAS[F.linear_cross_entropy] = _linear_cross_entropy
