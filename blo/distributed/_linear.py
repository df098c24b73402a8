"""The two linear maps between tensors that are equal on all ranks and others. Each is the adjoint of the other.

A tensor that is equal on all ranks enters a computation on each of them: that is a copy, and its adjoint sums the
cotangents over ranks. The sum over ranks is used on each of them, and its adjoint is a copy. Both are linear, so the
derivative along a tangent is the map itself. Each backward pass consists of the other map, so they can be
differentiated any number of times.

A backward pass must reach a sum or a copy on all ranks or on none, even if the objective of one rank does not use
theta. So a sum also has edges in the graph to the copies from which its tensors may have been computed; no cotangent
flows along these edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from blo._autodiff import transforms_active
from blo.distributed._ranks import Ranks

#: Adds what the ranks hold.
Adder: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]


class Copy(Function):
    """Tensors that are equal on all ranks, as tensors of each rank."""

    @staticmethod
    def of(ranks: Ranks, tensors: Sequence[Tensor], beside: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return copies; `beside` are other copies that the same computation uses."""
        beside = () if transforms_active() else tuple(beside)  # a transform would not know of them
        copies: tuple[Tensor, ...] = Copy.apply(ranks, beside, *tensors) if tensors else ()
        return list(copies)

    @staticmethod
    def forward(ranks: Ranks, beside: tuple[Tensor, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        # Torch would turn an output that is an input itself into a view of that input.
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.ranks, ctx.beside, *tensors = inputs
        ctx.kinds = [_kind(tensor) for tensor in tensors]
        # None, in place of zeros, shows that this rank does not use a tensor.
        ctx.set_materialize_grads(False)
        # The cotangents of a second backward pass may be computed from the copies, so its sum gets edges to them.
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # A rank that does not use a tensor adds zero. How many ranks use it is summed as well: if none does, its
        # cotangent is None.
        used = [cotangent is not None for cotangent in cotangents]
        dtype, device = ctx.kinds[0][1:]
        counts = torch.tensor(used, dtype=dtype, device=device)
        ties = [] if transforms_active() else [*ctx.saved_tensors, *ctx.beside]
        *sums, counts = SumOverRanks.of(ctx.ranks, [*_filled(cotangents, ctx.kinds), counts], ties)
        if all(used) or transforms_active():
            return None, None, *sums
        return None, None, *(found if count else None for found, count in zip(sums, counts.tolist(), strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(Copy.of(ctx.ranks, _filled(tangents[2:], ctx.kinds)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], ranks: Ranks, beside: Any, *tensors: Tensor) -> tuple[Any, Any]:
        return tuple(Copy.of(ranks, tensors)), in_dims[2:]


class SumOverRanks(Function):
    """The sum over ranks."""

    @staticmethod
    def of(
        ranks: Ranks, tensors: Sequence[Tensor], ties: Sequence[Tensor] = (), add: Adder | None = None
    ) -> list[Tensor]:
        """Return the sum of each tensor over ranks, computed by `add`, by default `ranks.sum`."""
        add = ranks.sum if add is None else add
        sums: tuple[Tensor, ...] = SumOverRanks.apply(ranks, add, len(tensors), *tensors, *ties)
        return list(sums)

    @staticmethod
    def forward(ranks: Ranks, add: Adder, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(add(tensors[:count]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.ranks, _, count, *tensors = inputs
        ctx.kinds, ctx.ties = [_kind(tensor) for tensor in tensors[:count]], len(tensors) - count
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        copies = iter(Copy.of(ctx.ranks, [cotangent for cotangent in cotangents if cotangent is not None]))
        found = [None if cotangent is None else next(copies) for cotangent in cotangents]
        return None, None, None, *found, *[None] * ctx.ties

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(SumOverRanks.of(ctx.ranks, _filled(tangents[3:][: len(ctx.kinds)], ctx.kinds)))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], ranks: Ranks, add: Adder, count: int, *tensors: Tensor
    ) -> tuple[Any, Any]:
        # Give all of them the mapped axis, since on another rank they may have it.
        wide = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors[:count], in_dims[3:][:count], strict=True)
        ]
        return tuple(SumOverRanks.of(ranks, wide, tensors[count:], add)), (0,) * count


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _filled(tensors: Sequence[Tensor | None], kinds: Sequence[Any]) -> list[Tensor]:
    """Return the tensors, with zeros of the given kinds in the place of None."""
    return [
        torch.zeros(shape, dtype=dtype, device=device) if tensor is None else tensor
        for tensor, (shape, dtype, device) in zip(tensors, kinds, strict=True)
    ]
