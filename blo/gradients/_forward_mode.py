"""The Jacobian dz/dtheta carried along with the solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blo._autodiff import jacobian
from blo._problem import FlatProblem
from blo._types import Tree
from blo.gradients._base import Solve


@dataclass
class ForwardRule:
    """Solves once for the solution and once, for all coordinates of theta together, for its Jacobian."""

    solve: Solve
    start: Callable[[Tree], Tree] | None = None
    #: Jacobians of the solves made, leaf by leaf, by the problem's identity.
    kept: dict[int, list[Tensor | None]] = field(default_factory=dict)

    def forward(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        """Return the solution, keeping its Jacobian."""
        z = self.solve(problem.bind(leaves), problem.place(self.start, leaves, z0))
        places = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

        def solved(*live: Tensor) -> Tensor:
            full = list(leaves)
            for place, leaf in zip(places, live, strict=True):
                full[place] = leaf
            return self.solve.quietly(problem.bind(full).record(), problem.place(self.start, full, z0))

        jacobians: list[Tensor | None] = [None] * len(leaves)
        if places:
            # A tangent cannot be laid out like a leaf that `vmap` expanded.
            live = tuple(leaves[place].contiguous() for place in places)
            found = jacobian(solved, live)
            for place, part in zip(places, found, strict=True):
                jacobians[place] = part
        self.kept[id(problem)] = jacobians
        return z

    def pull(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> list[Tensor | None]:
        """Return `(dz/dtheta)^T v` for each leaf."""
        pairs = zip(self.kept[id(problem)], leaves, strict=True)
        return [None if part is None else torch.tensordot(v, part, dims=v.ndim).to(leaf) for part, leaf in pairs]
