"""The cause of a lower solution that is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain
from blo._problem_at_theta import ProblemAtTheta
from blo._remedies import ASTRAY, SMALLER
from blo._types import Tree
from blo.solvers import Solver


def origin(problem: ProblemAtTheta, theta: Tree, z0: Tensor, z: Tensor, solver: Solver) -> str:
    """Return a message on the cause of a NaN in the lower solution z, as far as arguments and two gradients show it."""
    look, rest = "Look at what it was computed from.", problem.detach().at_step(0)
    # In the order of the computation, since a value that is not finite spoils all later ones.
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
            f"`{kind}` finds no point nearest to a gradient step from the solver's last point: on the boundary of the "
            "set the gradients of constraints may vanish or be linearly dependent."
        )
    return SMALLER if hasattr(solver, "step") else ASTRAY


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(plain(tensor)).all()) for tensor in tensors)
