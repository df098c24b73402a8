"""Steps that are projected onto bounds: a backtracking line search for each lane, and the free coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._term import Term, expanded
from blo._vectors import dot, stepped
from blo.errors import StructureError
from blo.sets import Free

__all__ = ["Line", "bounds", "free", "judge", "start"]

#: Share of the decrease predicted by the gradient that a step must achieve (Armijo's condition).
_SHARE = 1e-4
#: After this number of consecutive rejections the values are assumed to differ only by rounding.
_PATIENCE = 12


class Line(NamedTuple):
    """The state of a line search, which makes one trial at a time, shapes `(*lanes, 1)`.

    Attributes:
        value: the objective at the current point.
        length: the factor of the next step.
        tries: the number of consecutive rejected trials.
    """

    value: Tensor
    length: Tensor
    tries: Tensor


def start(value: Tensor, like: Tensor) -> Line:
    """Return the initial state at a point with this value, shape `lanes`; `like` has the shape `(*lanes, 1)`."""
    return Line(value.detach().unsqueeze(-1), torch.ones_like(like), torch.zeros_like(like))


def judge(
    line: Line, value: Tensor, moved: Tensor, before: Tensor, after: Tensor, *, followed: bool
) -> tuple[Tensor, Line]:
    """Accept or reject a trial, and choose the length of the next step.

    Args:
        line: the state before the trial.
        value: the objective at the trial, shape `lanes`.
        moved: the trial minus the current point, shape `(*lanes, n)`.
        before: the gradient at the current point.
        after: the gradient at the trial.
        followed: the steps will be differentiated, so the length is locally constant.

    Returns:
        Whether the trial is accepted, shape `(*lanes, 1)`, and the next state. The length doubles after an accepted
        step; a solver that knows the curvature resets it to 1.
    """
    moved, value = moved.detach(), value.detach().unsqueeze(-1)
    promised = dot(moved, before.detach())
    ahead = dot(moved, after.detach())
    gain = value - line.value
    noise = torch.finfo(value.dtype).eps ** (2 / 3) * torch.maximum(value.abs(), line.value.abs())
    # On a quadratic this condition on the gradient equals Armijo's condition, and it remains accurate where values
    # differ only by rounding (Hager and Zhang 2005, approximate Wolfe condition).
    flat = ahead <= (2 * _SHARE - 1) * promised
    blind = (gain.abs() <= noise) | (line.tries >= _PATIENCE)
    good = (gain <= _SHARE * promised) | (blind & flat)
    accepted = torch.isfinite(value) & torch.isfinite(ahead) & (promised <= 0) & good
    # The minimiser of the parabola through the value and slope at the current point and the value at the trial,
    # limited to a decrease by a factor between 2 and 10. If the trial's value is not finite, the factor is 10.
    parabola = -0.5 * promised / torch.where(gain > promised, gain - promised, 1.0)
    shrunk = torch.where(torch.isfinite(value), parabola.clamp(0.1, 0.5), 0.1)
    shrunk = stepped(shrunk) if followed else shrunk
    return accepted, Line(
        value=torch.where(accepted, value, line.value),
        length=line.length * torch.where(accepted, 2.0, shrunk),
        tries=torch.where(accepted, 0.0, line.tries + 1),
    )


def bounds(term: Term, z: Tensor, solver: str) -> tuple[Tensor, Tensor] | None:
    """Return the lower and upper bounds, in the shape of z; None if the problem has no constraint.

    Raises:
        StructureError: for any other set and for penalties; the message names the solver.
    """
    if isinstance(term, Free):
        return None
    found = term.bounds(z)
    if found is None:
        raise StructureError(
            f"`{solver}` needs a set that bounds each coordinate by itself: `Free`, `Box`, `NonNegative`, a `Product` "
            f"of these, or a set of your own with `bounds`, but got {type(term).__name__}. Use ProjectedGradient() or "
            "FISTA()."
        )
    low, high = found
    return expanded(low, z), expanded(high, z)


def free(z: Tensor, slope: Tensor, low: Tensor, high: Tensor, margin: Tensor) -> Tensor:
    """Return the coordinates that are free, booleans of z's shape.

    A coordinate is not free if it is within the margin of a bound and the negative gradient points towards this bound.
    Without the margin, the bounds that an iterate approaches could make the steps arbitrarily short (Bertsekas 1982).
    """
    z, slope = z.detach(), slope.detach()
    pressed = ((z <= low + margin) & (slope > 0)) | ((z >= high - margin) & (slope < 0))
    return ~pressed
