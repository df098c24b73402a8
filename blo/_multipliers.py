"""Which constraints hold a solution, told from where it lies and from the multipliers that press it there.

A solution is known to the accuracy of its solver only. One that lies next to a constraint is held by it where the
multiplier exceeds the distance, both in units in which the objective's curvature is one, and is free otherwise. On a
constraint from which the multiplier pulls it away it is free: its solver stopped there within the tolerance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Ratio between distance and multiplier beyond which it is plain which of the two is zero.
_PLAIN = 1e3


def clear(distance: Tensor, multiplier: Tensor, slack: float) -> Tensor:
    """Tell which constraints leave the solution free, booleans of the shape of the distance.

    Args:
        distance: how far inside the constraint the solution lies.
        multiplier: how strongly the objective pushes it outwards; negative where it pulls it inwards.
        slack: distance beyond which no multiplier holds it.
    """
    return (distance > multiplier.clamp(0.0, slack)) | (multiplier < 0)


def unresolved(distance: Tensor, multiplier: Tensor, slack: float, z: Tensor) -> Tensor:
    """Tell which constraints are near, and neither clear of the solution nor pressed against it.

    Args:
        distance: see `clear`.
        multiplier: likewise.
        slack: distance beyond which a constraint is not near.
        z: the solution, shape `(*lanes, n)`, for the rounding of distances.
    """
    rounding = 16 * torch.finfo(z.dtype).eps * z.detach().abs().amax(-1, keepdim=True)
    size, distance = multiplier.abs(), distance.clamp(min=0.0)
    pressed = size > torch.maximum(_PLAIN * distance, rounding)
    return (distance <= slack) & ~pressed & (_PLAIN * size >= distance)


def negligible(multiplier: Tensor, gradient: Tensor, tangential: Tensor) -> Tensor:
    """Tell which multipliers cannot be told from zero.

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
