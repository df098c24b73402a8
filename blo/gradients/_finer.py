"""Theta in the precision of z, where gradients in theta are subtracted from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autocast import suspended
from blo._problem_at_theta import ProblemAtTheta
from blo._theta import coarse, refined, taking


class Finer(NamedTuple):
    """A lower problem at a theta that is at least as precise as z.

    Attributes:
        problem: the problem. `like` converts gradients in its theta to the dtypes of the original theta.
        slope: the gradient of the objective in z, shape `(*lanes, n)`. It differs from the gradient at the original
            theta by the rounding of what the objective computes from theta alone.
    """

    problem: ProblemAtTheta
    slope: Tensor


def finer(problem: ProblemAtTheta, z: Tensor) -> Finer | None:
    """Return the problem with each leaf of theta that is less precise than z converted to z's dtype.

    A gradient has the dtype of its leaf. Over a displacement chosen for z's precision, two gradients in a less precise
    dtype would differ by little more than their rounding. The result is None if there is no such leaf.

    Raises:
        StructureError: if the objective accepts theta only in its original dtype.
    """
    leaves = problem.leaves
    if not any(coarse(leaf, z.dtype) for leaf in leaves):
        return None
    pairs = zip(refined(leaves, z.dtype), leaves, strict=True)
    taken = [fine if fine is leaf else fine.requires_grad_(leaf.requires_grad) for fine, leaf in pairs]
    with taking(leaves, z.dtype), torch.enable_grad(), suspended.on():
        fine = problem.rebind(taken)
        return Finer(fine, fine.detach().gradient(z.detach()).detach())


def like(leaves: Sequence[Tensor], parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradient of each leaf in the dtype of the leaf."""
    pairs = zip(parts, leaves, strict=True)
    return [None if part is None else part.to(leaf.dtype) for part, leaf in pairs]
