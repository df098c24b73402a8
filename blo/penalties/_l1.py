"""The sum of absolute values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._autodiff import as_tensor
from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Counts, Tangent
from blo._types import Tree
from blo.penalties._base import Penalty, fit_weight, require_weight


@dataclass(frozen=True, eq=False)
class L1(Penalty):
    """`sum_i weight_i |z_i|`, which makes solutions sparse (the lasso).

    The implicit gradient is that on the support: zeros stay zero, and the other coordinates move as if the penalty were
    linear (Bertrand et al., JMLR 2022, Implicit differentiation for fast hyperparameter selection, Prop. 4).

    Attributes:
        weight: at least 0: a number, a tensor of shape `lanes` (one value per problem), a tensor that broadcasts to z,
            or a tree like z. Coordinates of weight 0 are not penalised.
        slack: a coordinate with `|z| > slack` is on the support. A smaller one is on it unless
            the weight exceeds the absolute gradient by at least `|z|`. Absolute, in z's unit.
        validate: check the values of a tensor, which is a host synchronisation on an accelerator.

    Raises:
        ValueError: if a weight is negative or NaN; when the problem is solved, if `slack` is negative.
        StructureError: when the problem is solved, if `weight` does not fit z.
    """

    weight: Tree
    slack: float = 1e-7
    validate: bool = True

    def __post_init__(self) -> None:
        require_weight(self.weight, "L1.weight", self.validate)

    def fit(self, layout: Layout) -> L1:
        return replace(self, weight=fit_weight(self.weight, layout, "L1.weight", self.validate), validate=False)

    def value(self, z: Tensor) -> Tensor:
        return torch.sum(self.weight * z.abs(), -1)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return soft_threshold(z, step * self.weight)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        support = on_support(z, gradient, self.weight, self.slack)
        # With fixed signs the penalty is linear along the face: K is zero, and only the weight changes the force.
        sign = z.sign() * support

        def force(term: L1, at: Tensor) -> Tensor:
            pull: Tensor = term.weight * sign
            return pull

        def count() -> Counts:
            tangential = gradient * support + self.weight * sign
            return sparse_counts(z, support, gradient, tangential, self.weight, self.slack)

        return Tangent(lambda v: v * support, 0.0, count, force=force)


def soft_threshold(z: Tensor, threshold: Tensor | float) -> Tensor:
    """Return z moved towards zero by the threshold, and zero where it is nearer than that."""
    # `<`, so that it is the identity, also in its derivative, where z and the threshold are both zero; NaN stays NaN.
    return torch.where(z.abs() < threshold, 0.0, z - threshold * z.sign())


def on_support(z: Tensor, gradient: Tensor, weight: Tensor | float, slack: float) -> Tensor:
    """Return where z can move in both directions: off zero, and where the weight is zero; booleans of z's shape."""
    # A zero subgradient needs |gradient| <= weight, so weight - |gradient| is the multiplier that holds z at zero.
    off = clear(z.abs(), weight - gradient.abs(), slack) & (z != 0)  # zero itself has no sign
    # Without a weight there is no kink, and nothing holds a coordinate at zero.
    return off | (torch.as_tensor(weight, device=z.device) == 0)


def sparse_counts(
    z: Tensor, support: Tensor, gradient: Tensor, tangential: Tensor, weight: Tensor | float, slack: float
) -> Counts:
    """Count for a penalty that holds single coordinates at zero: degenerate where `|gradient|` reaches the weight."""
    multiplier = weight - gradient.abs()
    # Off the support a multiplier is negative only at an exact zero, which does not tell to which side it is pulled.
    undecided = ~support & (negligible(multiplier, gradient, tangential) | (multiplier < 0))
    undecided = undecided | (unresolved(z.abs(), multiplier, slack, z) & (as_tensor(weight) > 0))
    free = support.sum(-1)
    return Counts(free, support.shape[-1] - free, undecided.sum(-1))
