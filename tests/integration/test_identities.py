"""The identities that any right implementation satisfies, numbered as in the documentation of the mathematics.

Truth comes from the dense KKT systems and the re-solved problems of `tests.oracles`, and from projected gradient
steps written out here and differentiated by autodiff.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import blo
from tests.integration.problems import (
    EXACT,
    TIGHT,
    as_tensor,
    assert_near,
    few,
    hypergradient,
    projection_by_hand,
    quick,
    slope_by_hand,
    solution,
)
from tests.oracles import BatchedCase, QuadraticCase
from tests.strategies import SEEDS, batched_cases, generator, normal, quadratic_cases

CURVATURES = st.floats(0.3, 30.0)


def step_gradient(case: QuadraticCase, anchor: Tensor, curvature: float) -> tuple[Tensor, Tensor]:
    """Return one projected gradient step from the anchor and the upper gradient through it, by autodiff."""
    theta = case.start().requires_grad_()
    z = projection_by_hand(case, theta, anchor - slope_by_hand(case, theta, anchor) / curvature)
    (grad,) = torch.autograd.grad(case.upper(theta, z), theta)
    return z.detach(), grad


def linearized(
    case: QuadraticCase, anchor: Tensor, curvature: float, gradient: blo.gradients.Strategy
) -> blo.Hypergradient:
    lower = case.lower().linearize(anchor, curvature)
    return blo.value_and_hypergrad(
        case.upper, lower, case.start(), anchor, solver=blo.OneStep(1 / curvature), gradient=gradient
    )


@quick
@given(quadratic_cases(), SEEDS, CURVATURES)
def test_1_the_closed_form_is_autodiff_through_one_projected_step(
    case: QuadraticCase, seed: int, curvature: float
) -> None:
    anchor = normal(seed, len(case.c))
    z, grad = step_gradient(case, anchor, curvature)
    for gradient in (blo.KKTClosedForm(), blo.HessianFree(curvature), blo.Unrolled()):
        out = linearized(case, anchor, curvature, gradient)
        assert_near(out.z, z, 1e-12)
        assert_near(out.grad, grad, 1e-10)


@quick
@given(quadratic_cases(moving=False), SEEDS, CURVATURES)
def test_2_with_a_sign_step_the_implicit_part_is_exactly_zero(case: QuadraticCase, seed: int, curvature: float) -> None:
    anchor, theta = normal(seed, len(case.c)), case.start()

    def signed(theta: Tensor, z: Tensor) -> Tensor:
        return (slope_by_hand(case, theta, anchor).sign() * z).sum()

    step = 1 / curvature
    sign = blo.OneStep(step, "sign")
    lower = blo.LowerProblem(case.objective, case.constraint(theta))
    closed = blo.LowerProblem(signed, case.constraint(theta)).linearize(anchor, curvature)
    results = [
        blo.value_and_hypergrad(case.upper, lower, theta, anchor, solver=sign, gradient=blo.Unrolled()),
        blo.value_and_hypergrad(case.upper, lower, theta, anchor, solver=sign, gradient=blo.Zero()),
        blo.value_and_hypergrad(
            case.upper, closed, theta, anchor, solver=blo.OneStep(step), gradient=blo.KKTClosedForm()
        ),
    ]
    z = projection_by_hand(case, theta, anchor - step * slope_by_hand(case, theta, anchor).sign())
    live = theta.clone().requires_grad_()
    (direct,) = torch.autograd.grad(case.upper(live, z), live)
    for out in results:
        assert torch.equal(out.implicit, torch.zeros_like(theta))
        assert torch.equal(out.grad, out.direct)
        assert torch.equal(out.grad, results[0].grad)
        assert_near(out.z, z, 1e-13)
        assert_near(out.grad, direct, 1e-12)


@quick
@given(quadratic_cases(), SEEDS, CURVATURES)
def test_3_general_solvers_agree_with_the_closed_form_on_a_linearised_problem(
    case: QuadraticCase, seed: int, curvature: float
) -> None:
    anchor = normal(seed, len(case.c))
    _, grad = step_gradient(case, anchor, curvature)
    for linear_solver in (blo.Direct(), blo.CG()):
        assert_near(linearized(case, anchor, curvature, blo.Implicit(linear_solver)).grad, grad, 1e-10)


@quick
@given(quadratic_cases(kinds=("free", "box"), moving=False), st.integers(1, 12), st.floats(0.05, 0.5))
def test_4_steps_from_the_optimum_are_terms_of_the_neumann_series(
    case: QuadraticCase, terms: int, share: float
) -> None:
    theta, z = case.start().requires_grad_(), as_tensor(case.solution(case.theta))
    step = share / float(np.linalg.eigvalsh(case.hessian(case.theta)).max())
    unrolled = z
    for _ in range(terms):
        unrolled = projection_by_hand(case, theta, unrolled - step * slope_by_hand(case, theta, unrolled))
    (grad,) = torch.autograd.grad(case.upper(theta, unrolled), theta)
    out = blo.value_and_hypergrad(
        case.upper,
        case.lower(),
        case.start(),
        z,
        solver=blo.External(lambda theta, z0: z0),
        gradient=blo.Implicit(blo.Neumann(terms, step)),
    )
    assert_near(out.grad, grad, 1e-12)
    assert out.report.linear_iterations == (terms if out.report.free else 0)


@quick
@given(quadratic_cases())
def test_5_the_implicit_gradient_is_that_of_the_kkt_system(case: QuadraticCase) -> None:
    theta = case.theta
    for gradient in (EXACT, blo.Implicit(blo.CG())):
        out = hypergradient(case, gradient=gradient)
        assert_near(out.z, case.solution(theta), 1e-10)
        assert_near(out.value, case.value(theta))
        assert_near(out.direct, case.direct(theta))
        assert_near(out.implicit, case.implicit(theta))
        assert_near(out.grad, case.hypergradient(theta))


@few
@given(quadratic_cases())
def test_5_a_long_unroll_tends_to_the_implicit_gradient(case: QuadraticCase) -> None:
    assert_near(hypergradient(case, gradient=blo.Unrolled()).grad, case.hypergradient(case.theta))


@quick
@given(quadratic_cases(kinds=("free",)), SEEDS)
def test_6_constraints_that_do_not_bind_change_nothing(case: QuadraticCase, seed: int) -> None:
    truth, z = case.hypergradient(case.theta), as_tensor(case.solution(case.theta))
    gap = 0.1 + normal(seed, len(z)).abs()
    for loose in (blo.L2Ball(1e6), blo.L2Ball(0.3, z), blo.Box(z - gap, z + gap), blo.Box(-torch.inf, torch.inf)):
        lower = blo.LowerProblem(case.objective, loose)
        out = blo.value_and_hypergrad(case.upper, lower, case.start(), case.z0(), solver=TIGHT, gradient=EXACT)
        assert_near(out.grad, truth)


@quick
@given(quadratic_cases(kinds=("box",)), st.booleans())
def test_6_a_set_of_one_point_moves_as_the_point_does(case: QuadraticCase, moving: bool) -> None:
    start, pace = as_tensor(case.low), as_tensor(case.low_slope) * moving

    def point(theta: Tensor) -> Tensor:
        return start + pace @ theta

    lower = blo.LowerProblem(case.objective, lambda theta: blo.Box(point(theta), point(theta)))
    theta = case.start().requires_grad_()
    (truth,) = torch.autograd.grad(case.upper(theta, point(theta)), theta)
    out = blo.value_and_hypergrad(case.upper, lower, theta, case.z0(), solver=TIGHT, gradient=EXACT)
    assert_near(out.grad, truth, 1e-12)
    assert moving or torch.equal(out.implicit, torch.zeros_like(theta))


@quick
@given(quadratic_cases(), SEEDS)
def test_7_jacobian_and_transpose_are_adjoint(case: QuadraticCase, seed: int) -> None:
    """The first is the derivative of the second in w, so it takes the backward pass of the backward pass."""
    t, w = normal(seed, len(case.theta)), normal(seed + 1, len(case.c)).requires_grad_()
    theta = case.start().requires_grad_()
    (pulled,) = torch.autograd.grad(solution(case)(theta), theta, w, create_graph=True)
    if not pulled.requires_grad:  # a point that cannot move
        assert not pulled.any()
        return
    (pushed,) = torch.autograd.grad(pulled, w, t)
    assert_near((pushed * w).sum(), (t * pulled).sum())
    assert_near(pushed, case.jacobian(case.theta) @ t.numpy())


@quick
@given(quadratic_cases(), st.floats(1e-2, 1e2))
def test_8_scaling_the_lower_objective_leaves_the_jacobian(case: QuadraticCase, scale: float) -> None:
    lower = blo.LowerProblem(lambda theta, z: scale * case.objective(theta, z), case.constraint)
    solver = blo.ProjectedGradient(tol=1e-12 * max(scale, 1.0), max_steps=20_000)
    found = torch.func.jacrev(lambda theta: blo.argmin(lower, theta, case.z0(), solver=solver, gradient=EXACT))
    assert_near(found(case.start()), case.jacobian(case.theta), 1e-8)


@quick
@given(quadratic_cases(), st.floats(-1e3, 1e3))
def test_8_scaling_the_upper_objective_scales_the_hypergradient(case: QuadraticCase, scale: float) -> None:
    out = blo.value_and_hypergrad(
        lambda theta, z: scale * case.upper(theta, z), case.lower(), case.start(), case.z0(), solver=TIGHT
    )
    assert_near(out.grad / 1e3, scale / 1e3 * case.hypergradient(case.theta))


@quick
@given(quadratic_cases(), SEEDS)
def test_8_an_orthogonal_change_of_the_lower_variable_carries_over(case: QuadraticCase, seed: int) -> None:
    n = len(case.c)
    if case.kind in ("free", "ball"):
        Q, _ = torch.linalg.qr(normal(seed, n, n))
    else:  # a box stays a box, and a simplex a simplex, when coordinates trade places
        Q = torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator(seed))]

    def turned(theta: Tensor) -> blo.sets.Set:
        found = case.constraint(theta)
        if isinstance(found, blo.L2Ball):
            return blo.L2Ball(found.radius, Q @ found.center)
        return blo.Box(Q @ found.low, Q @ found.high) if isinstance(found, blo.Box) else found

    lower = blo.LowerProblem(lambda theta, z: case.objective(theta, Q.T @ z), turned)
    found = torch.func.jacrev(lambda theta: blo.argmin(lower, theta, case.z0(), solver=TIGHT, gradient=EXACT))
    assert_near(found(case.start()), Q.numpy() @ case.jacobian(case.theta))


@quick
@given(batched_cases())
def test_9_a_batch_is_its_lanes(case: BatchedCase) -> None:
    for gradient in (EXACT, blo.Implicit()):
        out = blo.value_and_hypergrad(
            case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=gradient
        )
        assert_near(out.z, case.solution(case.theta))
        assert_near(out.implicit, case.implicit(case.theta))
        assert_near(out.grad, case.hypergradient(case.theta))


@quick
@given(batched_cases(), SEEDS)
def test_9_permuting_the_batch_permutes_the_answer(case: BatchedCase, seed: int) -> None:
    order = torch.randperm(len(case.cases), generator=generator(seed))

    def jacobian(batch: BatchedCase) -> Tensor:
        lower, z0 = batch.lower(), batch.z0()
        found: Tensor = torch.func.jacrev(lambda theta: blo.argmin(lower, theta, z0, solver=TIGHT, gradient=EXACT))(
            case.start()
        )
        return found

    found = jacobian(BatchedCase([case.cases[i] for i in order]))
    assert_near(found, np.stack([one.jacobian(case.theta) for one in case.cases])[order.numpy()])
    assert_near(found, jacobian(case)[order], 1e-12)


@quick
@given(quadratic_cases(kinds=("box",), moving=False), SEEDS)
def test_10_the_implicit_part_vanishes_like_one_over_the_curvature(case: QuadraticCase, seed: int) -> None:
    low, high = as_tensor(case.low), as_tensor(case.high)
    inside = torch.rand(len(low), dtype=torch.float64, generator=generator(seed))
    anchor = low + (high - low) * (0.25 + 0.5 * inside)
    live = case.start().requires_grad_()
    for curvature in (1e6, 1e9):
        out = linearized(case, anchor, curvature, blo.KKTClosedForm())
        v = as_tensor(out.z) - as_tensor(case.target) + as_tensor(case.mixed).T @ case.start()
        (limit,) = torch.autograd.grad(slope_by_hand(case, live, anchor), live, -v)
        assert_near(curvature * out.implicit, limit, 1e-8)


@pytest.mark.parametrize("gradient", [EXACT, blo.Implicit(), blo.KKTClosedForm(), blo.HessianFree(1.0)], ids=str)
@few
@given(quadratic_cases(kinds=("box",), moving=False))
def test_10_with_every_coordinate_held_the_implicit_part_is_zero(
    gradient: blo.gradients.Strategy, case: QuadraticCase
) -> None:
    # Steep enough to push every coordinate against a bound.
    lower = blo.LowerProblem(
        lambda theta, z: case.objective(theta, z) + 1e3 * (z * (1 + theta.sum() ** 2)).sum(), case.constraint
    )
    out = blo.value_and_hypergrad(case.upper, lower, case.start(), case.z0(), gradient=gradient)
    assert out.report.active == len(case.c)
    assert torch.equal(out.implicit, torch.zeros_like(out.implicit))
