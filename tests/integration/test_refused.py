"""Arguments that cannot work raise an error that names them; a call that leaves no gradient gives a warning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo.stochastic import run

ONES = torch.ones(2, dtype=torch.float64)


def squares(theta: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (z - theta).square().sum()


def total(theta: Tensor, z: Tensor) -> Tensor:
    return z.sum()


def hypergradient(lower: blo.LowerProblem, **options: Any) -> blo.Hypergradient:
    return blo.value_and_hypergrad(options.pop("upper", total), lower, ONES, 0 * ONES, **options)


LOWER = blo.LowerProblem(squares)
EQUILIBRIUM = blo.LowerProblem.fixed_point(lambda t, z: 0.5 * z + t)
NEGATIVE = blo.Box(0.0, 1.0, slack=-1.0)
SOBA = blo.SOBA(lower_step=0.1, upper_step=0.1)
MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: blo.LowerProblem(3), blo.StructureError, "`objective` must be a function"),  # type: ignore[arg-type]
    (lambda: blo.LowerProblem(squares, blo.NonNegative), blo.StructureError, "but is the class NonNegative"),  # type: ignore[arg-type]
    (lambda: blo.LowerProblem(squares, penalty=blo.L1), blo.StructureError, "but is the class L1"),  # type: ignore[arg-type]
    (lambda: hypergradient(LOWER, upper=3), blo.StructureError, "`upper` must be a function"),
    (lambda: hypergradient(LOWER, state=3), blo.StructureError, "`state` must be .* but is of type int"),
    (lambda: hypergradient(EQUILIBRIUM, gradient=blo.SAMA()), blo.StructureError, "Use products='reverse'"),
    (lambda: blo.SAMA(0.0), ValueError, "`preconditioner` must be positive"),
    (lambda: blo.HessianFree(math.nan), ValueError, "`curvature` must not be zero or NaN, but is nan"),
    (lambda: blo.CG(tol=-1.0), ValueError, "None makes a fixed number of iterations"),
    (lambda: blo.External(lambda theta, z0: z0, tol=-1.0), ValueError, "`External.tol` must be positive, but is -1"),
    (lambda: blo.External(lambda theta, z0: z0, tol=None), ValueError, "`External.tol` must be positive, but is None"),  # type: ignore[arg-type]
    (lambda: blo.SOBA(lower_scheduler=3, upper_step=0.1), blo.StructureError, "lower_scheduler=lambda optimizer"),  # type: ignore[arg-type]
    (lambda: blo.check_hypergrad(total, LOWER, ONES, ONES, step=0.0), ValueError, "`step` must be positive"),
    (lambda: blo.check_hypergrad(total, LOWER, ONES, ONES, rtol=0.0), ValueError, "`rtol` must be positive"),
    (
        lambda: blo.check_hypergrad(total, blo.LowerProblem(lambda t, z: squares(t, z) * torch.nan), ONES, ONES),
        blo.NonFiniteError,
        "no hypergradient to check",
    ),
    (lambda: hypergradient(blo.LowerProblem(squares, NEGATIVE)), ValueError, "Box.slack` must not"),
    (
        lambda: hypergradient(blo.LowerProblem(squares, blo.Intersection(blo.L2Ball(2.0), NEGATIVE))),
        ValueError,
        "Box.slack` must not",
    ),
    (
        lambda: blo.argmin(
            blo.LowerProblem(lambda t, z: squares(t, z[0]) + squares(t, z[1]), blo.Product(blo.Free(), NEGATIVE)),
            ONES,
            (0 * ONES, 0 * ONES),
        ),
        ValueError,
        "Box.slack` must not",
    ),
    (lambda: run(SOBA, SOBA.init(ONES, ONES), total, squares, steps=-3), ValueError, "`steps` must be at least 1"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("mistake", range(len(MISTAKES)))
@pytest.mark.filterwarnings("ignore::blo.errors.BloWarning")
def test_a_mistake_is_named(mistake: int) -> None:
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_where_matrices_are_factorised(dtype: torch.dtype) -> None:
    theta = ONES.to(dtype)
    with pytest.raises(blo.StructureError, match="z0 must be float32 or float64"):
        blo.value_and_hypergrad(total, LOWER, theta, theta)
    with pytest.raises(blo.StructureError, match="`Direct` factorises in float32 or float64"):
        blo.value_and_hypergrad(total, LOWER, theta, theta, solver=blo.ProjectedGradient(1.0), on_failure="ignore")


@pytest.mark.parametrize("strategy", [blo.Implicit(), blo.Unrolled(checkpoint=True)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_forward_mode_says_what_to_use_instead(strategy: blo.gradients.Strategy) -> None:
    def solution(theta: Tensor) -> Tensor:
        return blo.argmin(LOWER, theta, 0 * ONES, gradient=strategy).sum()

    for transform in (torch.func.hessian, torch.func.jacfwd):
        with pytest.raises(blo.StructureError, match=r"Use jacrev, for a Hessian jacrev\(jacrev"):
            transform(solution)(ONES)


@pytest.mark.parametrize("solver", [None, blo.Newton()])
def test_a_singular_curvature_is_named(solver: blo.solvers.Solver | None) -> None:
    flat = blo.LowerProblem(lambda t, z: 0.5 * (z[0] - t[0]).square() + 0.0 * z[1])
    with pytest.warns(blo.ConvergenceWarning, match="The curvature is singular on the tangent space"):
        hypergradient(flat, solver=solver)


def test_a_constant_set_that_holds_theta() -> None:
    theta = ONES.clone().requires_grad_()
    lower = blo.LowerProblem(squares, blo.Box(0.0, 0.5 * theta))
    with pytest.warns(blo.errors.ConstantWarning, match="pass a function|Pass a function `theta -> set`"):
        blo.argmin(lower, theta, 0 * ONES)
    with pytest.warns(blo.errors.ConstantWarning, match="the Box holds a tensor that requires grad"):
        blo.value_and_hypergrad(total, lower, theta, 0 * ONES)


def test_nothing_to_unroll() -> None:
    with pytest.warns(blo.errors.ConstantWarning, match="the lower solver made no step"):
        out = blo.value_and_hypergrad(total, LOWER, ONES, ONES.clone(), gradient=blo.Unrolled())
    assert out.grad.abs().max() == 0
    # A fixed number of steps starts from anywhere, without a warning.
    fixed = blo.ProjectedGradient(0.5, max_steps=3, tol=None)
    out = blo.value_and_hypergrad(total, LOWER, ONES, ONES.clone(), solver=fixed, gradient=blo.Unrolled())
    torch.testing.assert_close(out.grad, 0.875 * ONES, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "strategy",
    [blo.Unrolled(), blo.Unrolled(last=2), blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")],
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_backward_pass_over_no_step_finds_zeros(strategy: blo.Unrolled, batched: bool) -> None:
    # Every z is a solution at theta = 0: no step is made.
    lower = blo.LowerProblem(lambda t, z: (t["w"] * t["n"] * (z - 1).square()).sum(-1), batched=batched)
    theta = {"w": (0 * ONES).requires_grad_(), "n": torch.ones(ONES.shape, dtype=torch.int64)}
    z0 = torch.zeros(2, *ONES.shape, dtype=torch.float64) if batched else 0 * ONES
    with pytest.warns(blo.errors.ConstantWarning, match="the lower solver made no step") as told:
        z = blo.argmin(lower, theta, z0, gradient=strategy)
        (alone,) = torch.autograd.grad((z - 1).square().sum(), theta["w"], retain_graph=True)
        (z.square().sum() + 3 * theta["w"].sum()).backward()
    assert len(told) == 1
    assert torch.equal(alone, 0 * ONES)
    assert theta["w"].grad is not None
    assert torch.equal(theta["w"].grad, 3 * ONES)


def test_forward_mode_over_no_step_finds_zeros() -> None:
    forward = torch.autograd.forward_ad
    with forward.dual_level(), pytest.warns(blo.errors.ConstantWarning, match="the lower solver made no step"):
        theta = forward.make_dual(ONES.clone().requires_grad_(), ONES)
        z = blo.argmin(LOWER, theta, ONES.clone(), gradient=blo.Unrolled())
        assert torch.equal(forward.unpack_dual(z).tangent, 0 * ONES)


@pytest.mark.parametrize("strategy", [blo.Unrolled(), blo.Unrolled(last=2)])
def test_an_unrolled_solve_reports_under_transforms(strategy: blo.Unrolled) -> None:
    early = blo.ProjectedGradient(0.01, max_steps=3)

    def solution(lower: blo.LowerProblem) -> Callable[[Tensor], Tensor]:
        return lambda t: blo.argmin(lower, t, 0 * ONES, solver=early, gradient=strategy).sum()

    with pytest.warns(blo.ConvergenceWarning, match="has not converged in 1 of 1 problems"):
        torch.func.grad(solution(LOWER))(ONES)
    with pytest.warns(blo.ConvergenceWarning, match="has not converged in 3 of 3 problems"):
        torch.func.vmap(solution(LOWER))(ONES.expand(3, 2))
    with pytest.raises(blo.NonFiniteError, match="NaN"):
        torch.func.grad(solution(blo.LowerProblem(lambda t, z: squares(t, z) * torch.nan)))(ONES)


@pytest.mark.parametrize("gradient", [blo.Implicit(), blo.Unrolled(checkpoint=True), blo.ValueFunction(10.0)])
def test_batches_of_cotangents_of_the_older_vmap_are_refused(gradient: blo.gradients.Strategy) -> None:
    theta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum())
    solver = blo.ProjectedGradient(0.25)
    z = blo.argmin(lower, theta, torch.zeros_like(theta), solver=solver, gradient=gradient)
    with pytest.raises(blo.StructureError, match=r"is_grads_batched.*jacrev"):
        torch.autograd.grad(z, theta, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
