"""Which constraints are active at a solution, decided from their distances and multipliers.

A solution is known only to the accuracy of its solver. A constraint near it is active if the multiplier exceeds the
distance, and inactive otherwise. This compares two units, and assumes that the objective has a curvature of about one.
If the multiplier pulls the solution away from the constraint, it is inactive even at distance zero: the solver stopped
there within its tolerance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Ratio between distance and multiplier beyond which it is clear which of the two is zero.
_PLAIN = 1e3


def clear(distance: Tensor, multiplier: Tensor, slack: float) -> Tensor:
    """Return which constraints are inactive, booleans of the shape of the distance.

    Args:
        distance: how far inside the constraint the solution lies.
        multiplier: how strongly the objective pushes it outwards; negative where it pulls it inwards.
        slack: distance beyond which a constraint is inactive whatever its multiplier.
    """
    # A projected gradient step of size one moves z outwards by the multiplier, and ends on the constraint unless the
    # distance is larger.
    return (distance > multiplier.clamp(0.0, slack)) | (multiplier < 0)


def unresolved(distance: Tensor, multiplier: Tensor, slack: float, z: Tensor) -> Tensor:
    """Return which constraints are near, but neither clearly inactive nor clearly active.

    Args:
        distance: see `clear`.
        multiplier: likewise.
        slack: distance beyond which a constraint is not near.
        z: the solution, shape `(*lanes, n)`, for the rounding of distances.
    """
    # A distance is a difference of numbers of the size of z, and is rounded like them.
    rounding = 16 * torch.finfo(z.dtype).eps * z.detach().abs().amax(-1, keepdim=True)
    size, inside = multiplier.abs(), distance.clamp(min=0.0)
    pressed = size > torch.maximum(_PLAIN * inside, rounding)
    undecided = (inside <= slack) & ~pressed & (_PLAIN * size >= inside)
    return undecided | adrift(distance, multiplier, slack, z)


def adrift(distance: Tensor, multiplier: Tensor, slack: float, z: Tensor, width: Tensor | float = math.inf) -> Tensor:
    """Return which constraints count as active only because `slack` exceeds the whole solution, or a width.

    In the middle of a small set, the rounding of a steep gradient is larger than the distance from the boundary.

    Args:
        distance: see `clear`.
        multiplier: likewise.
        slack: likewise.
        z: the solution, shape `(*lanes, n)`.
        width: the distance from the opposite constraint.
    """
    largest = z.detach().abs().amax(-1, keepdim=True).clamp(max=width)
    return (distance <= slack) & (_PLAIN * distance > largest) & (distance > 0) & (distance <= multiplier)


def adrift_in_bounds(low: Tensor, high: Tensor, multiplier: Tensor, slack: float, z: Tensor) -> Tensor:
    """Return `adrift` for the bound of each coordinate against which the multiplier presses.

    Args:
        low: distance from the lower bound.
        high: distance from the upper bound.
        multiplier: positive at the lower bound, negative at the upper one.
        slack: see `clear`.
        z: the solution, shape `(*lanes, n)`.
    """
    return adrift(torch.where(multiplier > 0, low, high), multiplier.abs(), slack, z, low + high)


def negligible(multiplier: Tensor, gradient: Tensor, tangential: Tensor) -> Tensor:
    """Return which multipliers cannot be distinguished from zero.

    The threshold of a lane is `sqrt(eps) * max|gradient| + max|P gradient|` with eps of the dtype (1.5e-8 and
    3.5e-4 relative in double and single precision): the second term is zero at an exact solution, so its size
    is the accuracy to which the multipliers are known.

    Args:
        multiplier: shape `(*lanes, k)`.
        gradient: gradient at the solution, shape `(*lanes, n)`.
        tangential: P gradient, shape `(*lanes, n)`.

    Returns:
        Booleans of shape `(*lanes, k)`.
    """
    relative = math.sqrt(torch.finfo(gradient.dtype).eps)
    size = gradient.abs().amax(-1, keepdim=True)
    noise = tangential.abs().amax(-1, keepdim=True)
    return multiplier.abs() <= relative * size + noise
