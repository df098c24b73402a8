"""How long steps may be along every direction, not only along those that a solver happens to take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import plain
from blo._curvature import unaligned
from blo.solvers._base import Problem
from blo.solvers._stopping import gradient_change

#: Power iterations at the start, and steps between two later ones.
_FIRST, _PERIOD = 10, 10

#: Longest step in units of one over the curvature. A step of just that unit is Newton's where all curvatures are equal:
#: it squares the error of z, and stops the solve, while that of the derivative is still the error of z before it.
_SHARE = 0.9


class Probe(NamedTuple):
    """A direction that turns, by power iteration, to the one along which the objective curves most.

    A step beyond two over the largest curvature is no harm to a coordinate that is already solved to the last bit:
    its gradient is zero. The derivative of the iteration is not zero there, and such steps blow it up. So where one
    differentiates through the iteration, steps are held below one over the curvature that this direction shows.

    Attributes:
        direction: one unit vector a lane, shape `(*lanes, n)`.
        bend: the curvature along it, shape `(*lanes, 1)`; 0 where it is unknown.
        age: steps made, a plain number in a tensor on the CPU.
    """

    direction: Tensor
    bend: Tensor
    age: Tensor

    @classmethod
    def at(cls, problem: Problem, z: Tensor, slope: Tensor) -> Probe:
        """Return the probe at the start of a solve."""
        none, age = torch.zeros_like(z.detach()[..., :1]), torch.zeros((), dtype=torch.int64)
        probe = cls(unaligned(z).expand_as(z), none, age)
        for _ in range(_FIRST):
            probe = probe._turned(problem, z, slope)
        return probe

    def stepped(self, problem: Problem, z: Tensor, slope: Tensor) -> Probe:
        """Return the probe after one more step, which led to z with this slope."""
        older = self._replace(age=self.age + 1)
        # Under `vmap`, problems that rest have stopped counting.
        due = int(plain(older.age).max()) % _PERIOD == 0
        return older._turned(problem, z, slope) if due else older

    def limited(self, step: Tensor) -> Tensor:
        """Return the step, at most about one over the curvature seen; shape `(*lanes, 1)`."""
        return torch.where(step * self.bend > _SHARE, _SHARE / self.bend, step)

    def _turned(self, problem: Problem, z: Tensor, slope: Tensor) -> Probe:
        change = gradient_change(problem, z, slope, self.direction)
        bend = torch.linalg.vector_norm(change, dim=-1, keepdim=True)
        seen = torch.isfinite(bend) & (bend > 0)
        return self._replace(
            direction=torch.where(seen, change / bend, self.direction), bend=torch.where(seen, bend, 0.0)
        )
