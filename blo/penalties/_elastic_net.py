"""The sum of absolute values and squares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._layout import Layout
from blo._term import Counts, Tangent
from blo._types import Tree
from blo.penalties._base import Penalty, fit_weight, require_weight
from blo.penalties._l1 import on_support, soft_threshold, sparse_counts


@dataclass(frozen=True, eq=False)
class ElasticNet(Penalty):
    """`sum_i weight_i |z_i| + ridge_i / 2 z_i^2` (Zou and Hastie, 2005).

    Attributes:
        weight: as in `L1`.
        ridge: like weight, in units of objective over z squared.
        slack: a coordinate with `|z| > slack` is on the support. A smaller one is on it unless
            the weight exceeds the absolute gradient by at least `|z|`. Absolute, in z's unit.
        validate: check the values of tensors, which is a host synchronisation on an accelerator.

    Raises:
        ValueError: if a weight or a ridge is negative or NaN; when the problem is solved, if `slack` is negative.
        StructureError: when the problem is solved, if a parameter does not fit z.
    """

    weight: Tree
    ridge: Tree
    slack: float = 1e-7
    validate: bool = True

    def __post_init__(self) -> None:
        require_weight(self.weight, "ElasticNet.weight", self.validate)
        require_weight(self.ridge, "ElasticNet.ridge", self.validate)

    def fit(self, layout: Layout) -> ElasticNet:
        weight = fit_weight(self.weight, layout, "ElasticNet.weight", self.validate)
        ridge = fit_weight(self.ridge, layout, "ElasticNet.ridge", self.validate)
        return replace(self, weight=weight, ridge=ridge, validate=False)

    def value(self, z: Tensor) -> Tensor:
        return torch.sum(self.weight * z.abs() + 0.5 * self.ridge * z.square(), -1)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        # The minimiser x of (x - z)^2 / 2 + step (weight |x| + ridge x^2 / 2): soft thresholding, then shrinkage.
        near: Tensor = soft_threshold(z, step * self.weight) / (1 + step * self.ridge)
        return near

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        # The slope of the ridge is zero at z = 0, so the condition that holds a coordinate there is that of `L1`.
        support = on_support(z, gradient, self.weight, self.slack)
        sign = z.sign() * support

        def force(term: ElasticNet, at: Tensor) -> Tensor:
            pull: Tensor = term.weight * sign + term.ridge * at * support
            return pull

        def count() -> Counts:
            tangential = gradient * support + force(self, z)
            return sparse_counts(z, support, gradient, tangential, self.weight, self.slack)

        # K is the ridge on the support. It needs no mask, since it is diagonal and is used between two projections P.
        return Tangent(lambda v: v * support, self.ridge, count, force=force)
