"""Where a lower solution that is not finite comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain
from blo._bound import Bound
from blo._remedies import ASTRAY, SMALLER
from blo._types import Tree
from blo.solvers import Solver


def origin(problem: Bound, theta: Tree, z0: Tensor, z: Tensor, solver: Solver) -> str:
    """Say where a NaN of the lower solution z comes from, as far as the arguments and two gradients tell."""
    look, rest = "Look at what it was computed from.", problem.detach().at_step(0)
    if not _finite([z0]):
        return f"The start of the solver is not finite itself: `z0`, or what `start(theta)` returned. {look}"
    if not _finite(tree.leaves(theta)):
        return f"`theta` is not finite itself. {look}"
    if not _finite([rest.gradient(z0)]):
        return (
            "The objective has no finite gradient at the start of the solver, so no `step` will help: look for NaN "
            "in its data, and at the objective with torch.autograd.detect_anomaly."
        )
    kind = type(problem.term).__name__
    if not _finite([problem.prox(z0, 1.0)]):
        return f"`{kind}` has no finite point nearest to the start of the solver: the set may be empty."
    slope = rest.gradient(z.detach())
    if _finite([z, slope]) and not _finite([problem.prox(z.detach() - slope, 1.0)]):
        return (
            f"`{kind}` finds no point nearest to a gradient step from where the solver ended: at the edge of the "
            "set the gradients of constraints may vanish or depend on each other."
        )
    return SMALLER if hasattr(solver, "step") else ASTRAY


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(plain(tensor)).all()) for tensor in tensors)
