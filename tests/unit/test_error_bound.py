"""Bounds of errors, against the exact solutions and adjoints that NumPy finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blo
from tests import oracles
from tests.oracles import BatchedCase, QuadraticCase
from tests.strategies import SEEDS, batched_cases, normal, quadratic_cases

quick = settings(deadline=None, max_examples=25)


def report_at(
    case: QuadraticCase | BatchedCase, z: Tensor, mu: float, gradient: blo.gradients.Strategy
) -> blo.Hypergradient:
    """Return the hypergradient at a point that claims to be the solution."""
    lower = replace(case.lower(), strong_convexity=mu)
    solver = blo.External(lambda theta, z0: z)
    return blo.value_and_hypergrad(
        case.upper, lower, case.start(), case.z0(), solver=solver, gradient=gradient, on_failure="ignore"
    )


def near(case: QuadraticCase, seed: int, distance: float, feasible: bool) -> Tensor:
    """Return a point at about this distance of the solution, in the set if feasible."""
    z = torch.as_tensor(case.solution(case.theta)) + distance * normal(seed, len(case.c))
    return case.constraint(case.start()).project(z) if feasible else z


@quick
@given(quadratic_cases(), SEEDS, st.sampled_from([1e-8, 1e-4, 1e-1, 10.0]), st.booleans(), st.sampled_from([1.0, 1e3]))
def test_the_bound_of_the_solution_holds_and_is_sharp_up_to_the_condition(
    case: QuadraticCase, seed: int, distance: float, feasible: bool, stiffness: float
) -> None:
    case = replace(case, A=stiffness * case.A)
    z, values = near(case, seed, distance, feasible), np.linalg.eigvalsh(case.hessian(case.theta))
    error = float(np.linalg.norm(z.numpy() - case.solution(case.theta)))
    bound = report_at(case, z, float(values[0]), blo.Zero()).report.lower_error_bound
    assert bound is not None
    assert error <= bound * (1 + 1e-9) + 1e-11
    assert bound <= 10 * (values[-1] / values[0] + 1 / values[0] + 1) * error + 1e-10


@quick
@given(quadratic_cases(), st.sampled_from([0.0, 1e-6, 1e-2, 1.0]), st.booleans())
def test_the_bound_of_the_adjoint_holds_and_is_sharp_up_to_the_condition(
    case: QuadraticCase, damping: float, free: bool
) -> None:
    found, v = case.solve(case.theta), case.cotangent(case.theta)
    H, n, k = case.hessian(case.theta), len(case.c), len(found.rows)
    values = np.linalg.eigvalsh(H)
    system = np.block([[H + found.bend * np.eye(n), found.rows.T], [found.rows, np.zeros((k, k))]])
    truth = np.linalg.solve(system, np.concatenate([v, np.zeros(k)]))[:n]
    strategy = blo.HessianFree(1.0 + damping) if free else blo.Implicit(blo.Direct(damping=damping))
    out = report_at(case, torch.as_tensor(found.z), float(values[0]), strategy)
    error, bound = float(np.linalg.norm(out.state["q"].numpy() - truth)), out.report.adjoint_error_bound
    assert bound is not None
    assert error <= bound * (1 + 1e-9) + 1e-10
    assert bound <= 2 * (values[-1] + found.bend) / values[0] * error + 1e-9


@quick
@given(batched_cases(), SEEDS)
def test_of_a_batch_the_worst_lane_counts(case: BatchedCase, seed: int) -> None:
    mu = min(float(np.linalg.eigvalsh(one.hessian(case.theta))[0]) for one in case.cases)
    points = [near(one, seed + i, 10.0**-i, True) for i, one in enumerate(case.cases)]
    whole = report_at(case, torch.stack(points), mu, blo.Implicit(blo.Direct(damping=0.1))).report
    alone = [
        report_at(one, z, mu, blo.Implicit(blo.Direct(damping=0.1))).report
        for one, z in zip(case.cases, points, strict=True)
    ]
    for name in ("lower_error_bound", "adjoint_error_bound"):
        assert getattr(whole, name) == pytest.approx(max(getattr(one, name) for one in alone), rel=1e-8, abs=1e-10)


def test_the_bound_holds_for_a_penalty() -> None:
    """Soft thresholding is the solution of `1/2 |z - theta|^2 + |z|_1`."""

    class Absolute(blo.penalties.Penalty):
        def value(self, z: Tensor) -> Tensor:
            return z.abs().sum(-1)

        def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
            return z.sign() * (z.abs() - step).clamp(min=0.0)

        def tangent(self, z: Tensor, gradient: Tensor) -> blo.sets.Tangent:
            return blo.sets.Tangent(lambda v: v * (z != 0), 0.0, lambda: blo.sets._base.Counts(z, z, z))

    theta = torch.tensor([3.0, 0.2, -1.5], dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(), penalty=Absolute(), strong_convexity=1.0)
    truth = torch.tensor([2.0, 0.0, -0.5], dtype=torch.float64)
    for shift in (0.0, 1e-3, 1.0):
        z = truth + shift * torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
        out = blo.value_and_hypergrad(
            lambda t, z: z.sum(),
            lower,
            theta,
            z,
            solver=blo.External(lambda t, z0: z0),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
        error, bound = float((z - truth).norm()), out.report.lower_error_bound
        assert bound is not None and error <= bound <= 4 * error


def test_a_linearised_problem_knows_its_curvature() -> None:
    case = oracles.draw("box", 4, 2, seed=3)
    lower = case.lower().linearize(case.z0(), 2.5)
    assert lower.modulus == 2.5
    out = blo.value_and_hypergrad(
        case.upper, lower, case.start(), case.z0(), solver=blo.OneStep(1 / 2.5), gradient=blo.KKTClosedForm()
    )
    assert out.report.lower_error_bound is not None and out.report.lower_error_bound < 1e-14
    assert out.report.adjoint_error_bound is not None and out.report.adjoint_error_bound < 1e-14
    assert "error bounds   lower solution" in str(out.report) and ", adjoint " in str(out.report)


def test_without_a_curvature_there_is_no_bound() -> None:
    case = oracles.draw("box", 4, 2, seed=3)
    out = blo.value_and_hypergrad(case.upper, case.lower(), case.start(), case.z0(), gradient=blo.Implicit())
    assert out.report.lower_error_bound is None and out.report.adjoint_error_bound is None
    assert "error bounds" not in str(out.report)


@pytest.mark.parametrize("products", ["reverse", "forward", "finite-difference"])
def test_the_bound_uses_the_products_of_the_strategy(products: blo.gradients._products.Products) -> None:
    case = oracles.draw("ball", 4, 2, seed=3)
    out = report_at(
        case, torch.as_tensor(case.solution(case.theta)), 0.5, blo.Implicit(blo.CG(max_iter=1), products=products)
    )
    exact = report_at(case, torch.as_tensor(case.solution(case.theta)), 0.5, blo.Implicit(blo.CG(max_iter=1)))
    assert out.report.adjoint_error_bound == pytest.approx(exact.report.adjoint_error_bound, rel=1e-6)


def test_bounds_cost_nothing_until_they_are_read() -> None:
    case, calls = oracles.draw("box", 4, 2, seed=3), []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        calls.append(1)
        return case.objective(theta, z)

    lower = blo.LowerProblem(objective, case.constraint, strong_convexity=0.1)
    solver = blo.ProjectedGradient(0.1, max_steps=3, tol=None)
    out = blo.value_and_hypergrad(
        case.upper, lower, case.start(), case.z0(), solver=solver, gradient=blo.Implicit(), on_failure="ignore"
    )
    assert len(calls) == 4
    assert out.report.lower_error_bound and len(calls) == 7
    assert out.report.adjoint_error_bound is not None and len(calls) == 8


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_curvature_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="`strong_convexity` must be positive"):
        blo.LowerProblem(lambda t, z: z.sum(), strong_convexity=value)
