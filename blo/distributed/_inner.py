"""The inner product of vectors whose coordinates are spread over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from blo._vectors import dot
from blo.distributed._linear import SumOverRanks
from blo.distributed._ranks import Ranks


def inner_product(group: Any = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the inner product of vectors of which each rank holds some of the coordinates.

    Pass it as `inner` to `CG`, `MINRES`, `GMRES`, `Neumann` or `Auto`, which then solve a system whose vectors are
    spread over the ranks. The operator and the preconditioner get the coordinates of this rank, return the same
    coordinates of the image, and do the communication that this needs themselves. All ranks must make the same calls in
    the same order. The inner products are equal on all ranks, bit for bit, so all ranks make the same decisions.

    Without a process group, or in a group of one, it is the Euclidean inner product.

    Args:
        group: a process group of `torch.distributed`; by default that of all processes. It is looked up at each
            evaluation.

    Returns:
        A function of two vectors of shape `(*axes, n)` that returns a tensor of shape `(*axes, 1)`. The number n of
        coordinates may differ between ranks, the other axes must be equal.

    Raises:
        StructureError: when it is evaluated, if there are several processes, but no process group.
        RankError: when it is evaluated, if another rank does not answer.
    """

    def inner(a: Tensor, b: Tensor) -> Tensor:
        own, ranks = dot(a, b), Ranks.of(group)
        return own if ranks is None else SumOverRanks.of(ranks, [own])[0]

    return inner
