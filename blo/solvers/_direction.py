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


def scaled(problem: Problem, z: Tensor, gradient: Tensor, direction: Direction) -> Tensor:
    """Return the negative of a descent direction at z, each lane by itself.

    It is the gradient itself, or of norm one the one along which the objective falls fastest: in the max-norm its
    sign, in the 2-norm a multiple of it, in the 1-norm its largest coordinate alone. All lead nowhere where the
    gradient is zero.
    """
    if direction == "gradient":
        return gradient
    if direction == "sign":
        return gradient.sign()
    if direction == "coordinate":
        return _coordinate(gradient, problem.term.blocked(z, gradient))
    norm = euclidean_norm(gradient)
    # A lane whose gradient is zero is stationary: it stays, and its derivative stays finite.
    return gradient / torch.where(norm > 0, norm, torch.ones_like(norm))


def _coordinate(gradient: Tensor, blocked: Tensor | None) -> Tensor:
    """Return the signs of the largest coordinates, of sum one: those that are equal share the step.

    Coordinates that a bound stops are left out. A step along one of them would lead nowhere, and so would all that
    follow; in the other directions the rest of the coordinates still moves.

    Source: Boyd and Vandenberghe (2004), Convex optimization, 9.4.2. Attacks leave coordinates out for the same reason:
    Tramèr and Boneh (NeurIPS 2019), Adversarial training and robustness for multiple perturbations.
    """
    size, sign = gradient.detach().abs(), gradient.sign()
    if blocked is not None:
        size, sign = torch.where(blocked, 0.0, size), torch.where(blocked, 0.0, sign)
    largest = size == size.amax(-1, keepdim=True)
    return sign * largest / largest.sum(-1, keepdim=True)  # of a NaN none is the largest: it stays visible
