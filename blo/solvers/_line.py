"""Backtracking along a projected step, one trial at a time, in each lane by itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Line", "free", "judge", "start"]

#: Share of the decrease promised by the slope that a step must bring (Armijo).
_SHARE = 1e-4
#: Trials taken back in a row, after which values count as nothing but rounding.
_PATIENCE = 12


class Line(NamedTuple):
    """The state of a line search, shapes `(*lanes, 1)`.

    Attributes:
        value: the objective at the current point.
        length: what the next step is multiplied with.
        tries: trials taken back in a row.
    """

    value: Tensor
    length: Tensor
    tries: Tensor


def start(value: Tensor, like: Tensor) -> Line:
    """Return the state at a point with this value, shape `lanes`; `like` has the shape `(*lanes, 1)`."""
    return Line(value.detach().unsqueeze(-1), torch.ones_like(like), torch.zeros_like(like))


def judge(line: Line, value: Tensor, moved: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Line]:
    """Decide on a trial, and on the length of the next step.

    Args:
        line: the state before.
        value: the objective at the trial, shape `lanes`.
        moved: the trial minus the current point, shape `(*lanes, n)`.
        before: the slope at the current point.
        after: the slope at the trial.

    Returns:
        Whether the trial is accepted, shape `(*lanes, 1)`, and the state after it. The length is doubled after a step
        that was accepted; a solver that knows the curvature resets it to 1.
    """
    moved, value = moved.detach(), value.detach().unsqueeze(-1)
    promised = (moved * before.detach()).sum(-1, keepdim=True)
    ahead = (moved * after.detach()).sum(-1, keepdim=True)
    gain = value - line.value
    noise = torch.finfo(value.dtype).eps ** (2 / 3) * torch.maximum(value.abs(), line.value.abs())
    # Equal to the first condition on a quadratic, and accurate where values differ by their rounding alone.
    flat = ahead <= (2 * _SHARE - 1) * promised
    blind = (gain.abs() <= noise) | (line.tries >= _PATIENCE)
    good = (gain <= _SHARE * promised) | (blind & flat)
    accepted = torch.isfinite(value) & torch.isfinite(ahead) & (promised <= 0) & good
    # The minimum of the parabola through the value and slope here and the value there.
    parabola = -0.5 * promised / torch.where(gain > promised, gain - promised, 1.0)
    shrunk = torch.where(torch.isfinite(value), parabola.clamp(0.1, 0.5), 0.1)
    return accepted, Line(
        value=torch.where(accepted, value, line.value),
        length=line.length * torch.where(accepted, 2.0, shrunk),
        tries=torch.where(accepted, 0.0, line.tries + 1),
    )


def free(z: Tensor, slope: Tensor, low: Tensor, high: Tensor, margin: Tensor) -> Tensor:
    """Return the coordinates that are not held by a bound, booleans of z's shape.

    A coordinate is held when the slope presses it against a bound that it has all but reached, that is within the
    margin. Without it, steps could be cut shorter and shorter by bounds they approach (Bertsekas 1982).
    """
    z, slope = z.detach(), slope.detach()
    pressed = ((z <= low + margin) & (slope > 0)) | ((z >= high - margin) & (slope < 0))
    return ~pressed
