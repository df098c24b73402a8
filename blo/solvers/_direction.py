"""Descent directions of a gradient step."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from blo.sets._norm import euclidean_norm
from blo.solvers._base import Problem

Direction: TypeAlias = Literal["gradient", "sign", "normalized", "coordinate"]


def check(direction: str) -> None:
    """Refuse an unknown direction.

    Raises:
        ValueError: naming the ones there are.
    """
    if direction not in get_args(Direction):
        *names, last = map(repr, get_args(Direction))
        raise ValueError(f"`direction` must be {', '.join(names)} or {last}, but is {direction!r}.")


def scaled(problem: Problem, z: Tensor, gradient: Tensor, direction: Direction, step: Tensor | float) -> Tensor:
    """Return the negative of a descent direction at z, each lane by itself.

    It is the gradient itself, or of norm one the one along which a linear objective falls fastest: in the max-norm its
    sign, in the 2-norm a multiple of it, in the 1-norm its largest coordinates, each as far as its bound. All lead
    nowhere where the gradient is zero.
    """
    if direction == "gradient":
        return gradient
    if direction == "sign":
        return gradient.sign()
    if direction == "coordinate":
        return _coordinates(gradient, problem.term.room(z, gradient), step)
    norm = euclidean_norm(gradient)
    # A lane whose gradient is zero is stationary: it stays, and its derivative stays finite.
    return gradient / torch.where(norm > 0, norm, torch.ones_like(norm))


def _coordinates(gradient: Tensor, room: Tensor | None, step: Tensor | float) -> Tensor:
    """Return the steepest descent of a step of this length in the 1-norm within bounds, divided by the step.

    Coordinates move to their bounds, the largest gradient first, until the step is used up; where nothing bounds
    them, the largest moves alone. Those of equal gradient share what is left in proportion to their room.

    Source: Boyd and Vandenberghe (2004), Convex optimization, 9.4.2; within the range of images Croce and Hein
    (ICML 2021), Mind the box: l1-APGD for sparse adversarial attacks on image classifiers.
    """
    size = gradient.detach().abs()
    room = torch.zeros_like(size) + step if room is None else room.clamp(max=step)
    falling, order = size.sort(dim=-1, descending=True)
    # The gradient of the coordinates at which the step is used up; the smallest, where the bounds leave less room.
    used = room.detach().gather(-1, order).cumsum(-1)
    last = (used < step).sum(-1, keepdim=True).clamp(max=size.shape[-1] - 1)
    marginal = falling.gather(-1, last)
    full, partly = room * (size > marginal), room * (size == marginal)
    left, wanted = step - full.sum(-1, keepdim=True), partly.sum(-1, keepdim=True)
    share = (left / torch.where(wanted > 0, wanted, 1.0)).clamp(0.0, 1.0)
    move = gradient.sign() * (full + share * partly) / step
    return torch.where(falling[..., :1].isnan(), torch.nan, move)  # a NaN has the sign 0 and would be hidden
