"""Finds operations whose derivatives in torch are wrong, in the graph of an objective's first value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F

from blo import tree
from blo._autodiff import graphs
from blo._formulas import Formulas
from blo._layers import shortened, weight_norm
from blo._norms import NORMS, third_derivatives
from blo._torch import backward_hooks, fused_weight_norm, versions
from blo.errors import DerivativeError, StructureError


class Searched:
    """A function of theta, z and possibly a step number, whose first graphs are searched for wrong derivatives.

    These are the fused weight norm and a cross-entropy in chunks, whose second derivatives are wrong in torch, and
    embeddings with gradients that are sparse or divided by counts. If there is one, all values are computed by formulas
    instead. Normalisations, whose third derivatives are wrong, are computed by formulas inside `third_derivatives`.
    The graph is searched once for a theta that requires grad and once for one that does not, at a microsecond for each
    operation. Compilers and later evaluations are not affected.

    Attributes:
        normalizes: whether a normalisation with a wrong third derivative has been found.

    Raises:
        DerivativeError: when called inside `third_derivatives`, if there is no formula for such a normalisation.
        StructureError: when called, if the function writes to its arguments or registers hooks on them.
    """

    def __init__(self, function: Callable[..., Any], name: str = "objective") -> None:
        self._function, self._name = function, name
        self._seen: set[bool] = set()
        self._formulas: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.normalizes = False
        self._passed: Any = object()  # the last theta for which nothing wrong was found

    def __call__(self, theta: Any, z: Any, *step: int) -> Any:
        # A solver calls with one theta again and again.
        if (theta is self._passed and not (self.normalizes and third_derivatives)) or torch.compiler.is_compiling():
            return self._function(theta, z, *step)
        # Without gradients there is no graph to search, so the search is left to a later evaluation.
        if not torch.is_grad_enabled():
            return self._value(theta, z, *step)
        upper = tree.tensors(theta)
        live = any(leaf.requires_grad for leaf in upper)
        if live in self._seen:
            self._passed = object() if self._formulas else theta
            return self._value(theta, z, *step)
        given = [*upper, *tree.tensors(z)]
        before, hooks = versions(given), sum(map(backward_hooks, given))
        value = self._value(theta, z, *step)
        self._seen.add(live)
        if versions(given) != before:
            raise StructureError(
                f"`{self._name}` must not write to theta or z, but does, as embeddings with max_norm do: its "
                "derivative would not be that of the value. Compute the changed tensor by operations that autograd "
                "records; for a module use blo.functionalize."
            )
        if sum(map(backward_hooks, given)) > hooks:
            raise StructureError(
                f"`{self._name}` must not register hooks on theta or z, because they also change the products with "
                "second derivatives. To change the gradients that a solver follows, use its `transform`."
            )
        if wrong := _misleads(tree.tensors(value), given):
            for order, table in wrong:
                if order == 2:
                    self._formulas.update(_TABLES[table])
            self.normalizes |= (3, "norms") in wrong
            if third_derivatives or any(order == 2 for order, _ in wrong):
                return self(theta, z, *step)
        if not self._formulas:
            self._passed = theta
        return value

    def _value(self, theta: Any, z: Any, *step: int) -> Any:
        """Return the function's value, by formulas where they are needed."""
        third = self.normalizes and third_derivatives
        if not (third or self._formulas):
            return self._function(theta, z, *step)
        with Formulas({**self._formulas, **(NORMS if third else {})}):
            value = self._function(theta, z, *step)
        if third and _misleads(tree.tensors(value), tree.tensors((theta, z))):
            raise DerivativeError(
                f"this derivative of a hypergradient needs third derivatives of `{self._name}`, and those of a layer "
                "norm or batch norm in it are wrong in torch. Normalise by F.layer_norm, F.batch_norm or "
                "F.instance_norm outside scripted modules, which are then computed by formulas, or by mean and var."
            )
        return value


def _misleads(values: Iterable[Tensor], inputs: Iterable[Tensor]) -> set[tuple[int, str]]:
    """Return the operations between inputs and values that have wrong derivatives.

    Returns:
        Pairs of the order from which derivatives of the values are wrong, 2 or 3, and the key in `_TABLES` of the
        formulas that are right.
    """
    # Operations before the inputs do not belong to the function.
    seen = {node for tensor in inputs for node in graphs(tensor)}
    chains = [graphs(value) for value in values]
    found = _found([nodes[0] for nodes in chains], seen)
    # z belongs to the innermost transform, so these operations have theta alone, and one derivative less is needed.
    outer = _found([node for nodes in chains for node in nodes[1:]], seen)
    return found | {(3 if table == "norms" else order, table) for order, table in outer}


def _found(nodes: list[Node | None], seen: set[Node | None]) -> set[tuple[int, str]]:
    """Return the pairs of `_misleads` in the graph of some nodes, which it adds to `seen`."""
    found = set()
    # A loop, since a graph may be deeper than Python allows recursions to be.
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        suspect = _suspect(type(node))
        if suspect is not None and any(getattr(node, flag, False) for flag in suspect[1]):
            found.add(suspect[0])
        for before, _ in node.next_functions:
            nodes.append(before)  # a comprehension would be a call for each node
    return found


_ALWAYS = ("next_functions",)


@cache
def _suspect(kind: type) -> tuple[tuple[int, str], tuple[str, ...]] | None:
    """Return the entry of `_misleads` for nodes of a class, if one of the named attributes is true; None: no such."""
    name = kind.__name__
    if name.startswith("WeightNormInterface"):
        return (2, "operations"), _ALWAYS
    if "linear_cross_entropy" in name:
        return (2, "operations"), ("allow_retain_graph",)
    if name.startswith("Embedding"):
        return (2, "operations"), ("_saved_scale_grad_by_freq", "_saved_sparse")
    if "LayerNorm" in name or "BatchNorm" in name:
        # The third derivative of a norm is the second one of an objective that contains its gradient.
        order = 2 if "BackwardBackward" in name else 3
        # With running statistics, a batch norm is a linear map.
        modes = tuple(flag for flag in ("_saved_training", "_saved_train") if hasattr(kind, flag))
        return (order, "norms"), modes or _ALWAYS
    return None


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
_TABLES = {"operations": _FORMULAS, "norms": NORMS}
if hasattr(F, "linear_cross_entropy"):  # in newer torch
    _FORMULAS[F.linear_cross_entropy] = _linear_cross_entropy
