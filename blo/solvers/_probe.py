"""An upper limit for step sizes from the largest curvature, not only from that along the solver's own steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import plain
from blo._curvature import unaligned
from blo._vectors import norm, stepped
from blo.solvers._base import Problem
from blo.solvers._stopping import gradient_change

#: Number of power iterations at the start, and of steps between two later iterations.
_FIRST, _PERIOD = 10, 10

#: Largest step size, in units of one over the curvature. If all curvatures are equal, a step size of 1 in this unit
#: gives Newton's step: it squares the error of z and so ends the solve, while the error of the derivative is still as
#: large as the error of z was before the step.
_SHARE = 0.9


class Probe(NamedTuple):
    """A power iteration for the direction of largest curvature.

    A step size above two over the largest curvature does no harm to a coordinate that is already solved exactly,
    because its gradient is zero. But the derivative of the iteration is not zero there, and it grows with every such
    step. So if the steps will be differentiated, their size is kept below one over the curvature along this direction.

    Attributes:
        direction: a unit vector for each lane, shape `(*lanes, n)`.
        bend: the curvature along it, shape `(*lanes, 1)`; 0 if it is unknown.
        age: the number of steps made, an integer tensor on the CPU.
    """

    direction: Tensor
    bend: Tensor
    age: Tensor

    @classmethod
    def at(cls, problem: Problem, z: Tensor, slope: Tensor) -> Probe:
        """Return the probe at the start of a solve."""
        none, age = torch.zeros_like(z.detach()[..., :1]), torch.zeros((), dtype=torch.int64, device="cpu")
        probe = cls(unaligned(z).expand_as(z), none, age)
        for _ in range(_FIRST):
            probe = probe._turned(problem, z, slope)
        return probe

    def stepped(self, problem: Problem, z: Tensor, slope: Tensor) -> Probe:
        """Return the probe after one more step, to z with the gradient `slope`."""
        older = self._replace(age=self.age + 1)
        # Under `vmap` lanes that have stopped no longer count, so the largest number is that of the running ones.
        due = int(plain(older.age).max()) % _PERIOD == 0
        return older._turned(problem, z, slope) if due else older

    def limited(self, step: Tensor) -> Tensor:
        """Return the step size, reduced to about one over the curvature if it is larger, shape `(*lanes, 1)`."""
        return torch.where(step * self.bend > _SHARE, _SHARE / stepped(self.bend), step)

    def _turned(self, problem: Problem, z: Tensor, slope: Tensor) -> Probe:
        change = gradient_change(problem, z, slope, self.direction)
        bend = norm(change)
        seen = torch.isfinite(bend) & (bend > 0)
        return self._replace(
            direction=torch.where(seen, change / bend, self.direction), bend=torch.where(seen, bend, 0.0)
        )
