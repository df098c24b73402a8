"""Descent directions for gradient steps."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from blo.sets._norm import euclidean_norm
from blo.solvers._base import Problem

Direction: TypeAlias = Literal["gradient", "sign", "normalized", "coordinate"]


def check(direction: str) -> None:
    """Check that a direction is known.

    Raises:
        ValueError: if it is not; the message lists the known ones.
    """
    if direction not in get_args(Direction):
        *names, last = map(repr, get_args(Direction))
        raise ValueError(f"`direction` must be {', '.join(names)} or {last}, but is {direction!r}.")


def scaled(problem: Problem, z: Tensor, gradient: Tensor, direction: Direction) -> Tensor:
    """Return the negative of a descent direction at z, for each lane separately.

    This is the gradient, or the direction of steepest ascent of norm one: the sign of the gradient for the max-norm,
    the normalised gradient for the 2-norm, the largest coordinate of the gradient for the 1-norm. Each is zero where
    the gradient is zero.
    """
    if direction == "gradient":
        return gradient
    if direction == "sign":
        return gradient.sign()
    if direction == "coordinate":
        return _coordinate(gradient, problem.term.blocked(z, gradient))
    norm = euclidean_norm(gradient)
    # A lane whose gradient is zero is stationary. Dividing by 1 keeps it in place and keeps its derivative finite.
    return gradient / torch.where(norm > 0, norm, torch.ones_like(norm))


def _coordinate(gradient: Tensor, blocked: Tensor | None) -> Tensor:
    """Return the sign of the largest coordinate, zero elsewhere; equal largest coordinates share the step equally.

    Coordinates that a bound blocks are left out. A step along a blocked coordinate would not move z, and neither would
    the steps after it, since the gradient would not change.

    Source: Boyd and Vandenberghe (2004), Convex optimization, 9.4.2. Attacks leave coordinates out for the same reason:
    Tramèr and Boneh (NeurIPS 2019), Adversarial training and robustness for multiple perturbations.
    """
    # The choice of the coordinate is piecewise constant, so its size takes no part in derivatives.
    size, sign = gradient.detach().abs(), gradient.sign()
    if blocked is not None:
        size, sign = torch.where(blocked, 0.0, size), torch.where(blocked, 0.0, sign)
    largest = size == size.amax(-1, keepdim=True)
    return sign * largest / largest.sum(-1, keepdim=True)  # a NaN gives 0 / 0, which stays visible
