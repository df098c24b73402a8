"""The adjoint as a function that torch differentiates, in reverse mode, to any order.

The derivative of a solution of `F(parameters, x) = 0` is again the solution of a linear system. So the backward pass of
a lower solution is an `Adjoint`, and the backward pass of an `Adjoint` is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from blo._autodiff import differentiated_twice, jvp
from blo._entrance import backward_pass
from blo._norms import third_derivatives
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo.gradients._function import alive, lanes_first
from blo.gradients._reverse_only import ReverseOnly
from blo.operators import Hessian, Operator, Restricted


class AdjointRule(Protocol):
    """How an implicit strategy sets up and solves the adjoint system. It holds no tensors."""

    def adjoint(self, problem: ProblemAtTheta, z: Tensor, v: Tensor, transposed: bool = False) -> Tensor:
        """Return q with `P (H + K)^T P q = P v`, or with H + K if `transposed`, from plain tensors."""

    def model(self, hessian: Operator) -> Operator:
        """Return the operator used in place of H."""


class Adjoint(ReverseOnly):
    """`q(theta, z, v)`, the solution of `P (H + K)^T P q = P v`.

    The transpose matters for fixed-point problems, where H is not symmetric. With `transposed`, q solves
    `P (H + K) P q = P v` instead.
    """

    @staticmethod
    def of(
        rule: AdjointRule,
        problem: ParametricProblem,
        leaves: Sequence[Tensor],
        z: Tensor,
        v: Tensor,
        transposed: bool = False,
    ) -> Tensor:
        """Return the adjoint, shape `(*lanes, n)`."""
        q: Tensor = Adjoint.apply(problem, rule, transposed, z, v, *leaves)
        return q

    @staticmethod
    def forward(
        problem: ParametricProblem,
        rule: AdjointRule,
        transposed: bool,
        z: Tensor,
        v: Tensor,
        *leaves: Tensor,
    ) -> Tensor:
        return rule.adjoint(problem.bind(leaves), z, v, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.problem, ctx.rule, ctx.transposed, *tensors = inputs
        ctx.save_for_backward(output, *tensors)

    @staticmethod
    @backward_pass
    @third_derivatives.on()
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        q, z, v, *leaves = alive(ctx.saved_tensors)
        problem, rule = ctx.problem, ctx.rule

        def product(gradient: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            slope, pullback = _vjp(gradient, z)
            if ctx.transposed:
                return slope, lambda u: jvp(gradient, z, u)
            return slope, lambda u: pullback(u)[0]

        def system(z: Tensor, v: Tensor, *live: Tensor) -> Tensor:
            at_theta = problem.bind(live)
            slope, hessian = product(at_theta.gradient, z)
            tangent = at_theta.tangent(at_theta.term, z, slope)
            squares = partial(_squares, at_theta, z)
            operator = Restricted(rule.model(Hessian(hessian, squares=squares)), tangent)
            # The implicit function theorem differentiates the equation of q at a fixed q, so q is a constant here.
            difference: Tensor = operator(q) - tangent.project(v)
            return difference

        here = problem.bind(leaves)
        tangent = here.tangent(here.term, z, here.gradient(z))
        # q is defined by S q - P v = 0 with S = P (H + K)^T P + (I - P), so its cotangent w is pulled back as -S^-T w
        # through `system`. Off the tangent space S^-T is the identity: hence w - P w. S^-T needs the other transpose
        # of H, unless H is symmetric.
        other = not ctx.transposed and not problem.symmetric
        r = Adjoint.of(rule, problem, leaves, z, w, other) + w - tangent.project(w)
        return None, None, None, *pull(system, (z, v, *leaves), -r)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: ParametricProblem,
        rule: AdjointRule,
        transposed: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        z, v, *leaves = lanes_first(info.batch_size, in_dims[3:], tensors)
        return Adjoint.of(rule, problem.lift(info.randomness), leaves, z, v, transposed), 0


def _squares(problem: ProblemAtTheta, z: Tensor, v: Tensor) -> Tensor:
    return problem.gauss_newton(z)(v)


def pull(function: Callable[..., Any], inputs: Sequence[Tensor], cotangent: Any) -> list[Tensor | None]:
    """Return the vector-Jacobian product for each floating point input, None for the others."""
    places = [i for i, tensor in enumerate(inputs) if tensor.is_floating_point()]

    def of_floats(*floats: Tensor) -> Any:
        full = list(inputs)
        for place, tensor in zip(places, floats, strict=True):
            full[place] = tensor
        return function(*full)

    _, pullback = _vjp(of_floats, *(inputs[i] for i in places))
    found: list[Tensor | None] = [None] * len(inputs)
    for place, tensor in zip(places, pullback(cotangent), strict=True):
        found[place] = tensor
    return found


def _vjp(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Callable[[Any], tuple[Tensor, ...]]]:
    """`torch.func.vjp` without auxiliary output, typed."""
    with differentiated_twice():
        value, pullback = torch.func.vjp(function, *inputs)[:2]
    return value, differentiated_twice()(pullback)
