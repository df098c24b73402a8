"""Bilevel problems whose objectives are means over batches, with the exact hypergradient beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

#: Tensors whose first axis numbers batches, or replicas in the arguments of an objective.
Batch = tuple[Tensor, ...]
Objective = Callable[[Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True)
class FiniteSum:
    """Two objectives on replicas: theta `(S, p)`, z `(S, n)`, a batch for each replica; the value is their sum.

    An algorithm that is linear in its directions solves the sum of S separate problems as S independent runs do, at
    about the cost of one run. All algorithms but BOME are linear in their directions.

    Attributes:
        upper: the upper objective.
        lower: the lower objective.
        upper_batches: all upper batches, of equal size.
        lower_batches: all lower batches, of equal size.
        theta0: start, shape `(p,)`.
        z0: start, shape `(n,)`.
        solve: maps thetas of shape `(m, p)` to the lower solutions, shape `(m, n)`.
        hypergradient: maps thetas of shape `(m, p)` to the gradients of F, shape `(m, p)`; neither uses blo.
        join: takes batches and a number k, and joins each k consecutive batches into one.
        linear: whether F has the Polyak-Łojasiewicz property, with which constant steps converge linearly.
        curvatures: the smallest and the largest eigenvalue of the lower objective's Hessian at the solution at theta0.
    """

    name: str
    upper: Objective
    lower: Objective
    upper_batches: Batch
    lower_batches: Batch
    theta0: Tensor
    z0: Tensor
    solve: Callable[[Tensor], Tensor]
    hypergradient: Callable[[Tensor], Tensor]
    join: Callable[[Batch, int], Batch]
    linear: bool
    curvatures: tuple[float, float]

    @cached_property
    def full(self) -> tuple[Batch, Batch]:
        """All examples of the upper and of the lower objective, as one batch each."""
        upper, lower = (self.join(b, len(b[0])) for b in (self.upper_batches, self.lower_batches))
        return upper, lower

    def in_units(self, unit: float) -> FiniteSum:
        """Return the problem as a function of `theta / unit`."""
        return replace(
            self,
            upper=lambda theta, z, batch: self.upper(unit * theta, z, batch),
            lower=lambda theta, z, batch: self.lower(unit * theta, z, batch),
            theta0=self.theta0 / unit,
            solve=lambda thetas: self.solve(unit * thetas),
            hypergradient=lambda thetas: unit * self.hypergradient(unit * thetas),
        )

    def squared(self, thetas: Tensor) -> Tensor:
        """Return `|grad F|^2` for each row."""
        return self.hypergradient(thetas).square().sum(-1)


def replicated(batches: Batch, replicas: int, generator: torch.Generator) -> Iterator[Batch]:
    """Return endless batches, drawn independently for each replica."""
    while True:
        drawn = torch.randint(len(batches[0]), (replicas,), generator=generator)
        yield tuple(part[drawn] for part in batches)


def numbered(batches: Batch) -> list[tuple[int, Batch]]:
    """Return each batch with its number, for one replica."""
    return [(i, tuple(part[i : i + 1] for part in batches)) for i in range(len(batches[0]))]
