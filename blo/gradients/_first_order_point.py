"""The part that all products without a graph of the gradient share: N and G of the term, by one backward pass."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from blo._autodiff import add, pullback
from blo._problem_at_theta import ProblemAtTheta
from blo.gradients._base import Optimality
from blo.gradients._point import Point


class FirstOrderPoint(Point, abc.ABC):
    """A point whose products need no second backward pass through the objective."""

    def __init__(self, problem: ProblemAtTheta, z: Tensor) -> None:
        self._problem, self._leaves, self._z = problem, problem.leaves, z.detach()
        self._live = [i for i, leaf in enumerate(problem.leaves) if leaf.requires_grad]
        with torch.no_grad():
            rest = problem.term.detach()
            slope = problem.detach().gradient(self._z)
            self.optimality = Optimality(z, slope, rest, problem.tangent(rest, z, slope))

    @abc.abstractmethod
    def along(self, q: Tensor) -> list[Tensor | None]:
        """Return `B^T q` for each leaf of theta."""

    def cross(self, q: Tensor, v: Tensor) -> list[Tensor | None]:
        parts = [None if part is None else -part for part in self.along(q)]
        if not self._problem.moving:
            return parts
        # The motion of the active face adds N^T (v - H q), and the force of the term at z + motion adds -G^T q.
        # The bracket holds H and not H + K: a force that changes along the motion does so in the second output. That of
        # a ball, which has no such output, changes only along the normal, and q is orthogonal to that.
        with torch.enable_grad():
            motion = self._problem.motion(self.optimality.term, self.optimality.tangent, self._z)
            outputs, cotangents = [motion], [v - self.times_hessian(q)]
            if self.optimality.tangent.force is not None:
                outputs.append(self.optimality.tangent.force(self._problem.term, self._z + motion))
                cotangents.append(-q)
        found = pullback(outputs, [self._leaves[i] for i in self._live], cotangents)
        moved = self._spread(found)
        return [add(a, b) for a, b in zip(parts, moved, strict=True)]

    def _spread(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return one entry for each leaf of theta from those for the leaves that require grad."""
        spread: list[Tensor | None] = [None] * len(self._leaves)
        for place, part in zip(self._live, parts, strict=True):
            spread[place] = part
        return spread
