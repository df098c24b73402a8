"""Strategies whose adjoint system is solved by a division."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._vectors import dot
from blo.gradients._products import Products, check
from blo.gradients._stationary import Stationary
from blo.linsolve import CG, LinearSolution
from blo.linsolve._space import EUCLIDEAN
from blo.operators import Operator, Restricted, ScaledIdentity, TangentSpace


@dataclass(frozen=True)
class HessianFree(Stationary):
    """Replaces the lower Hessian H by `curvature` times the identity; the cross term stays exact.

    T1-T2 (Luketina et al., 2016), Jacobian-free backpropagation, and the update of Fast-BAT (Zhang et al., ICML 2022,
    with curvature 10) are this strategy. K, the curvature of an active boundary, is kept.

    Args:
        curvature: in units of objective over z squared. Without a constraint that moves or is curved, a larger
            one means a smaller implicit part, and a negative one reverses its sign.
        products: as in `Implicit`. With `"finite-difference"`, `lower.linearize(w, 1 / step)`, `OneStep(step)` and
            `curvature=1 / step`, it is the update of second-order DARTS (Liu et al., ICLR 2019) at the weights w.

    Raises:
        ValueError: for a curvature of zero or NaN, or other products.
        StructureError: when the solution is differentiated, if `products` is not `"reverse"` for a fixed-point problem.
    """

    curvature: float = 1.0
    products: Products = "reverse"
    tol = None  # the approximation is intended, and no residual measures it

    def __post_init__(self) -> None:
        check(self.products)
        if not abs(self.curvature) > 0:
            raise ValueError(
                f"`curvature` must not be zero or NaN, but is {self.curvature}. Zero() leaves out the implicit part."
            )

    def model(self, hessian: Operator) -> Operator:
        return ScaledIdentity(self.curvature)

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        # The residual is that of the model, and does not measure how far `curvature I` is from H.
        return replace(_divide(self.curvature, system.tangent, b), measured=False)


@dataclass(frozen=True)
class KKTClosedForm(Stationary):
    """The exact implicit gradient of a lower problem whose Hessian on the tangent space is a multiple of the identity.

    `LowerProblem.linearize` returns such a problem (Zhang et al., ICML 2022, Prop. 1). The multiple is computed from
    one Hessian-vector product, which also tests the assumption: if the Hessian does not act on the right-hand side as
    a multiple of the identity, the linear solve is reported as unconverged.
    """

    def model(self, hessian: Operator) -> Operator:
        return hessian

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        # Only H has to be a multiple of the identity. K is known, and `_divide` adds it.
        size, _ = EUCLIDEAN.size(b)
        b = b / size  # its squares neither underflow nor overflow
        image = system.tangent.project(system.operator(b))
        length = dot(b, b)
        zero = length == 0
        # The Rayleigh quotient b'Hb / b'b is the multiple if P H b = c b, and |P H b - c b| tests that it is.
        curvature = torch.where(zero, 1.0, dot(b, image) / torch.where(zero, 1.0, length))
        scale = torch.linalg.vector_norm(image, dim=-1)
        error = torch.linalg.vector_norm(image - curvature * b, dim=-1)
        solution = _divide(curvature, system.tangent, b)
        # P H b - c b is orthogonal to b, so this is the sine of the angle between b and P H b, even for c = 0.
        error = torch.where(scale > 0, error / torch.where(scale > 0, scale, 1.0), error)
        # CG notices that H + K is indefinite, so that z is no minimiser on its face; a division does not.
        bent = solution.indefinite
        if system.tangent.bend is None:
            bent = (curvature + torch.zeros_like(b) + system.tangent.curvature <= 0).any(-1)
        return LinearSolution(size * solution.x, torch.maximum(error, solution.residual), solution.iterations, bent)


def _divide(curvature: Tensor | float, tangent: TangentSpace, b: Tensor) -> LinearSolution:
    """Solve `(curvature I + K) q = b` on the tangent space."""
    if tangent.bend is not None:  # K is not diagonal but has few distinct eigenvalues, so CG needs few iterations
        return CG().solve(Restricted(ScaledIdentity(curvature), tangent), b)
    # K is diagonal and commutes with P, so P (c I + K)^-1 P is the inverse on the tangent space.
    lanes = b.new_zeros(b.shape[:-1])
    q = tangent.project(b / (curvature + tangent.curvature))
    return LinearSolution(q, lanes, lanes.long(), lanes.bool())
