"""The Jacobian dz/dtheta carried along with the solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blo._autodiff import jacobian
from blo._problem_at_theta import ProblemAtTheta
from blo._types import Tree
from blo.gradients._base import Pulled, Solve
from blo.gradients._once_differentiable import OnceDifferentiableRule


@dataclass
class ForwardUnrollRule(OnceDifferentiableRule):
    """Solves once for the solution, and once more for its Jacobian in all coordinates of theta together."""

    solve: Solve
    start: Callable[[Tree], Tree] | None = None
    #: The Jacobian of each solve, leaf by leaf, under the number of `vmap` levels around the problem.
    kept: dict[int, list[Tensor | None]] = field(default_factory=dict)

    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        leaves = problem.leaves
        z = self.solve(problem, problem.place(self.start, z0))
        places = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

        def solved(*live: Tensor) -> Tensor:
            full = list(leaves)
            for place, leaf in zip(places, live, strict=True):
                full[place] = leaf
            there = problem.rebind(full)
            return self.solve.quietly(there.record(), there.place(self.start, z0))

        jacobians: list[Tensor | None] = [None] * len(leaves)
        if places:
            # A tangent must have the memory layout of its leaf, and cannot have that of a leaf that `vmap` expanded.
            live = tuple(leaves[place].contiguous() for place in places)
            found = jacobian(solved, live)
            for place, part in zip(places, found, strict=True):
                jacobians[place] = part
        self.kept[problem.lifts] = jacobians
        return z

    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        pairs = zip(self.kept[problem.lifts], problem.leaves, strict=True)
        return Pulled(
            [None if part is None else torch.tensordot(v, part, dims=v.ndim).to(leaf) for part, leaf in pairs]
        )
