"""The hypergradient with an adaptive optimiser's preconditioner in place of the inverse Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from blo._parametric_problem import ParametricProblem
from blo._settings import require_positive
from blo._term import fit_coordinates
from blo._types import Tree
from blo.errors import StructureError
from blo.gradients._base import Solve, Strategy
from blo.gradients._products import Products, check
from blo.gradients._stationary import Stationary, StationaryRule
from blo.linsolve import LinearSolution
from blo.operators import Diagonal, Operator, Restricted, ScaledIdentity


@dataclass(frozen=True)
class SAMA(Strategy):
    """Replaces the inverse of the lower Hessian by a diagonal, and takes the cross term by central differences.

    Choe et al., NeurIPS 2023 (Making scalable meta learning practical): when Adam trains the lower variable, the
    diagonal is the derivative of its update with respect to the gradient. It costs three extra first-order gradients.

    Args:
        preconditioner: the diagonal: a number, a tensor that broadcasts to z, or a tree like z; in units of z squared
            over objective. A number must be positive; entries of a tensor may be negative, as those of `from_adam`.
        products: as in `Implicit`.

    Raises:
        StructureError: when the problem is solved, if the preconditioner does not fit z; when the solution is
            differentiated, if `products` is not `"reverse"` for a fixed-point problem.
        ValueError: if `products` is unknown, or the preconditioner is a number that is not positive.
    """

    preconditioner: Tree = 1.0
    products: Products = "finite-difference"
    tol = None  # the approximation is intended, and no residual measures it
    measures_residual = True

    def __post_init__(self) -> None:
        check(self.products)
        if isinstance(self.preconditioner, int | float):
            require_positive(self.preconditioner, "preconditioner")

    @classmethod
    def from_adam(
        cls,
        optimizer: torch.optim.Adam,
        parameters: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        products: Products = "finite-difference",
    ) -> Self:
        """Return the strategy whose diagonal is the derivative of Adam's last update with respect to the gradient.

        Args:
            optimizer: Adam or AdamW. It has made a step, and its parameters still hold the gradients of that step.
            parameters: the parameters that are the lower variable, by name.
            scale: multiplies the diagonal: the number of steps that the linearised update stands for.
            products: as in the constructor.

        Raises:
            StructureError: if the optimiser is neither Adam nor AdamW (the updates of NAdam and RAdam have another
                derivative); if it uses amsgrad, maximize or weight decay that is not decoupled; if a parameter has no
                gradient, or the optimiser has not updated it.
        """
        if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            raise StructureError(
                "`optimizer` must be torch.optim.Adam or torch.optim.AdamW, whose update is differentiated, but is "
                f"of type {type(optimizer).__name__}. For another optimiser pass the derivative of its update in the "
                "gradient, or an approximation such as its learning rate, as SAMA(preconditioner)."
            )
        diagonal = {}
        for name, parameter in parameters.items():
            group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
            state = optimizer.state.get(parameter, {})
            if group is None or "exp_avg_sq" not in state or parameter.grad is None:
                raise StructureError(
                    f"`parameters[{name!r}]` must have been updated by `optimizer` and still hold its `.grad`, but it "
                    "has no Adam state or no gradient. Call SAMA.from_adam after optimizer.step(), before zero_grad()."
                )
            decays = group["weight_decay"] and not group.get("decoupled_weight_decay", False)
            if group["amsgrad"] or group["maximize"] or decays:
                raise StructureError(
                    "`optimizer` must be Adam without amsgrad, maximize and weight decay in the gradient, which change "
                    "the derivative of the update. Decoupled weight decay (AdamW) is allowed."
                )
            first, second = group["betas"]
            count = float(state["step"])
            slow, fast = 1 - second**count, 1 - first**count
            root = (state["exp_avg_sq"] / slow).sqrt()
            below = root + group["eps"]
            moment = state["exp_avg"] / fast
            # The update is lr m / (root + eps) with m = exp_avg / (1 - beta1^t), root^2 = exp_avg_sq / (1 - beta2^t).
            # Both averages contain this step's gradient g: dm/dg = (1 - beta1) / (1 - beta1^t), and `turned` is
            # droot/dg = (1 - beta2) g / ((1 - beta2^t) root).
            # Where root is zero, so is g, whose square is in the average: any divisor gives zero.
            turned = (1 - second) * parameter.grad / (slow * torch.where(root > 0, root, 1.0))
            diagonal[name] = scale * group["lr"] * ((1 - first) / fast / below - moment * turned / below.square())
        return cls(diagonal, products)

    @property
    def reads_theta_late(self) -> bool:
        """Whether the products have an error, which the report estimates from further evaluations."""
        return self.products == "finite-difference"

    def stationary(self, problem: ParametricProblem) -> Stationary:
        diagonal = fit_coordinates(self.preconditioner, problem.layout, "SAMA.preconditioner")
        return _Preconditioned(diagonal if isinstance(diagonal, Tensor) else float(diagonal), self.products)

    def rule(self, problem: ParametricProblem, solve: Solve) -> StationaryRule:
        return self.stationary(problem).rule(problem, solve)


@dataclass(frozen=True, eq=False)
class _Preconditioned(Stationary):
    diagonal: Tensor | float
    products: Products

    def model(self, hessian: Operator) -> Operator:
        return ScaledIdentity(1 / self.diagonal) if isinstance(self.diagonal, float) else Diagonal(1 / self.diagonal)

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        # The diagonal replaces the inverse of H + K on the tangent space, so K is not added to it.
        q = system.tangent.project(self.diagonal * b)
        lanes = b.new_zeros(b.shape[:-1])
        return LinearSolution(q, lanes, lanes.long(), lanes.bool(), measured=False)
