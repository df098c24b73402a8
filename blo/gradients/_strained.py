"""Linearly dependent active constraints: whether the solution is still differentiable."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from blo._autodiff import live, plain, pullback
from blo._problem_at_theta import ProblemAtTheta
from blo._term import Counts, Strain, Tangent
from blo._vectors import irregular

__all__ = ["strained"]


def strained(tangent: Tangent, strain: Strain, problem: ProblemAtTheta, z: Tensor) -> Tangent:
    """Return the tangent with this strain, counting dependent constraints as degenerate if theta moves them apart.

    The active constraints then differ with the direction in which theta changes, and the solution has one-sided
    derivatives only. Constraints that stay redundant as theta changes do not affect the derivative. The test runs when
    the directions are counted.
    """

    def count() -> Counts:
        counts, surplus = tangent.counts(), strain.surplus()
        if bool(plain(surplus > 0).any()) and _parts(strain, problem, z):
            return counts._replace(degenerate=counts.degenerate + surplus)
        return counts

    return replace(tangent, count=count)


def _parts(strain: Strain, problem: ProblemAtTheta, z: Tensor) -> bool:
    """Return whether theta moves dependent constraints apart.

    It compares two vector-Jacobian products in theta, with a fixed irregular vector: of the motion of the constraints,
    and of the part of it that no motion of z can follow.
    """
    leaves = live(problem.leaves)
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    with torch.enable_grad():
        moved, left = strain.of(problem.rebind(leaves).term, z.detach())
    # With a regular vector, such as ones, opposite motions of two constraints would cancel in the product. All entries
    # are at least 1, so every constraint counts.
    probe = (2 + irregular(moved.numel(), moved)).to(moved.dtype).reshape(moved.shape)

    def size(of: Tensor) -> float:
        return sum(float(part.double().square().sum()) for part in pullback([of], inputs, [probe]) if part is not None)

    # Sizes are squares, so this compares norms with a relative tolerance of sqrt(eps).
    return size(left) > torch.finfo(z.dtype).eps * size(moved)
