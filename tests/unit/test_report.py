"""What a report tells, on problems whose every figure is known."""

from __future__ import annotations

import gc
import io
import math
import pickle
import warnings
import weakref
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests.oracles import BatchedCase, QuadraticCase
from tests.strategies import batched_cases, quadratic_cases

TIGHT = blo.ProjectedGradient(tol=1e-12, max_steps=20_000)
quick = settings(deadline=None, max_examples=20)


def report_of(case: QuadraticCase | BatchedCase, **options: Any) -> blo.gradients.Pulled | Any:
    options = {"solver": TIGHT, "gradient": blo.Implicit(blo.Direct()), **options}
    return blo.value_and_hypergrad(case.upper, case.lower(), case.start(), case.z0(), **options).report


@quick
@given(quadratic_cases())
def test_norms_and_cosine_are_those_of_the_two_parts(case: QuadraticCase) -> None:
    report = report_of(case)
    direct, implicit = case.direct(case.theta), case.implicit(case.theta)
    lengths = np.linalg.norm(direct), np.linalg.norm(implicit)
    assert report.direct_norm == pytest.approx(lengths[0], rel=1e-9, abs=1e-12)
    assert report.implicit_norm == pytest.approx(lengths[1], rel=1e-8, abs=1e-9)
    if min(lengths) > 1e-6:
        assert report.cosine == pytest.approx(direct @ implicit / (lengths[0] * lengths[1]), rel=0, abs=1e-8)


def held(case: QuadraticCase) -> int:
    """Return how many directions the set holds, counted from the rows of the KKT system."""
    return len(case.solve(case.theta).rows)


@quick
@given(quadratic_cases())
def test_free_and_active_count_the_directions(case: QuadraticCase) -> None:
    report = report_of(case)
    assert (report.free, report.active, report.degenerate) == (len(case.c) - held(case), held(case), 0)
    assert report.ok and report.depends_on_theta
    assert (report.lower_status, report.linear_status) == (blo.Status.CONVERGED, blo.Status.CONVERGED)
    assert report.lower_residual <= 1e-12 and report.linear_residual <= 1e-8


@quick
@given(batched_cases())
def test_counts_add_up_over_the_lanes(case: BatchedCase) -> None:
    report = report_of(case)
    assert report.active == sum(held(one) for one in case.cases)
    assert report.free + report.active == case.z0().numel()


def evaluate(gradient: blo.gradients.Strategy, solver: Any = None, upper: Any = None, **options: Any) -> Any:
    """Report on `min 1/2 |z - theta|^2`, whose upper objective is `theta . z` at theta = (3, 4)."""
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(), options.pop("constraint", blo.Free()))
    theta = torch.tensor([3.0, 4.0], dtype=torch.float64)
    upper = (lambda t, z: t @ z) if upper is None else upper
    return blo.value_and_hypergrad(
        upper, lower, theta, torch.zeros(2).double(), solver=solver, gradient=gradient, **options
    ).report


def test_parallel_opposite_and_absent_parts() -> None:
    assert evaluate(blo.Implicit()).cosine == pytest.approx(1.0, abs=1e-9)
    opposite = evaluate(blo.Implicit(), upper=lambda t, z: t @ t - 0.1 * z @ z)
    assert opposite.cosine == pytest.approx(-1.0, abs=1e-9)
    assert evaluate(blo.Zero()).cosine == 0.0
    assert evaluate(blo.Implicit(), upper=lambda t, z: z.sum()).cosine == 0.0


def test_strategies_without_an_adjoint_leave_its_rows_empty() -> None:
    for gradient in (blo.Zero(), blo.Unrolled()):
        report = evaluate(gradient)
        assert report.linear_status is blo.Status.UNUSED
        assert (report.linear_residual, report.linear_iterations) == (None, 0)
        assert (report.free, report.active, report.degenerate) == (None, None, None)
        assert report.ok
    assert "not measured" in str(evaluate(blo.Zero(), blo.OneStep(1.0)))


def test_a_solver_that_measures_nothing_is_unchecked_but_its_residual_can_be_had() -> None:
    report = evaluate(blo.KKTClosedForm(), blo.OneStep(1.0))
    assert report.lower_status is blo.Status.UNCHECKED
    assert report.lower_residual == pytest.approx(0.0, abs=1e-15)
    assert report.ok
    report = evaluate(blo.Zero(), blo.OneStep(1.0))
    assert (report.lower_status, report.lower_residual) == (blo.Status.UNCHECKED, None)


def test_iterations_count_those_of_conjugate_gradients() -> None:
    assert evaluate(blo.Implicit(blo.CG())).linear_iterations == 1  # the Hessian is the identity
    assert evaluate(blo.Implicit(blo.Direct())).linear_iterations == 1
    assert evaluate(blo.KKTClosedForm()).linear_iterations == 0


def test_an_approximation_by_choice_is_ok_where_its_residual_is() -> None:
    halved = evaluate(blo.Implicit(blo.Neumann(terms=3, step=0.5)))
    assert halved.linear_status is blo.Status.UNCHECKED and not halved.ok
    assert halved.linear_residual == pytest.approx(0.5**3, rel=1e-12)
    for solver in (blo.Neumann(terms=1, step=1.0), blo.Nystrom(rank=2, damping=1e-9), blo.CG(max_iter=1, tol=None)):
        solved = evaluate(blo.Implicit(solver))
        assert solved.linear_status is blo.Status.UNCHECKED and solved.ok
    damped = evaluate(blo.Implicit(blo.Nystrom(rank=1, damping=1.0), products="reverse"))
    assert damped.ok is bool(damped.linear_residual <= 1e-6)
    with pytest.warns(blo.ConvergenceWarning, match=r"relative residual 8.00e\+00, tolerance 1.00e\+00"):
        away = evaluate(blo.Implicit(blo.Neumann(terms=3, step=3.0)))
    assert away.linear_status is blo.Status.UNCONVERGED and not away.ok


@pytest.mark.parametrize("gradient", [blo.HessianFree(2.0), blo.SAMA(0.5), blo.Implicit(blo.Identity(2.0))])
def test_an_inverse_that_nobody_measures_is_not_ok(gradient: blo.gradients.Strategy) -> None:
    report = evaluate(gradient)
    assert (report.linear_status, report.linear_residual) == (blo.Status.UNCHECKED, None)
    assert not report.ok and "relative residual not measured" in str(report)
    assert evaluate(gradient, upper=lambda t, z: t @ t + 0 * z.sum()).ok  # an adjoint of zero is right in any case


def test_a_ball_holds_one_direction() -> None:
    report = evaluate(blo.Implicit(), constraint=blo.L2Ball(1.0))
    assert (report.free, report.active, report.degenerate) == (1, 1, 0)
    report = evaluate(blo.Implicit(), constraint=blo.L2Ball(0.0), on_failure="ignore")
    assert (report.free, report.active) == (0, 2)


def test_the_text_has_a_row_for_each_subject() -> None:
    report = evaluate(blo.Implicit(), constraint=blo.Box(-1.0, 3.5))
    rows = str(report).splitlines()
    assert [row.split("  ")[0] for row in rows] == [
        "lower solve",
        "linear solve",
        "coordinates",
        "direct part",
        "implicit part",
    ]
    assert "converged, residual" in rows[0] and f"allowed, {report.lower_steps} steps" in rows[0]
    assert rows[1].endswith("1 iterations, Auto: Direct (n = 2)") and report.linear_method in rows[1]
    assert "1 free, 1 active, 0 degenerate" in rows[2]
    direct, implicit = (3.0, 3.5), (3.0, 0.0)  # z = (3, 3.5), and theta_2 has no way in
    assert f"norm {math.hypot(*direct):.6g}" in rows[3]
    cosine = 9 / (math.hypot(*direct) * math.hypot(*implicit))
    assert f"norm 3, cosine with the direct part {cosine:+.4f}" in rows[4]


def test_the_text_shows_the_tolerance_where_the_residual_is_largest() -> None:
    """One that was raised for the gradient's rounding would else hide behind `converged`."""
    residual, tol = torch.tensor([1e-9, 3e-3]), torch.tensor([1e-8, 2e-2])
    report = evaluate(blo.Implicit())
    for limit, text in ((tol, "3.00e-03 of 2.00e-02 allowed,"), (1e-5, "3.00e-03 of 1.00e-05 allowed,")):
        solution = replace(report.solution, residual=residual, tol=limit)
        assert f"residual {text}" in str(replace(report, solution=solution)).splitlines()[0]


def test_the_text_leaves_out_what_there_is_not() -> None:
    rows = str(evaluate(blo.Unrolled(), upper=lambda theta, z: z.sum())).splitlines()
    assert rows[1:] == [
        "linear solve   not needed: the strategy solves no linear system",
        "coordinates    not counted",
        "direct part    norm 0",
        "implicit part  norm 1.41421",
    ]


def test_every_status_is_a_sentence() -> None:
    assert len({str(status) for status in blo.Status}) == len(blo.Status)
    assert all(
        str(status) == status.value and " " in status.value for status in blo.Status if status.value != "converged"
    )


def test_norms_of_single_precision_are_summed_in_double() -> None:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum())

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return 1e25 * (theta.sum() + z.sum())

    theta = torch.full((4,), 0.5)
    out = blo.value_and_hypergrad(upper, lower, theta, torch.zeros(4))
    assert out.report.direct_norm == pytest.approx(2e25, rel=1e-6)
    assert out.report.cosine == pytest.approx(1.0, rel=1e-6)


class _Mark:
    """Lives as long as the node of a graph that it is attached to."""


CURVED = blo.LowerProblem(lambda t, z: (z.sinh() - t).square().sum() + z.square().sum(), strong_convexity=2.0)
KEPT: list[blo.gradients.Strategy] = [
    blo.Implicit(),
    blo.Implicit(products="forward"),
    blo.Implicit(products="finite-difference"),
    blo.Unrolled(),
    blo.Unrolled(last=2),
    blo.Unrolled(checkpoint=True),
    blo.ValueFunction(),
    blo.Zero(),
]


def _kept(strategy: blo.gradients.Strategy, lower: blo.LowerProblem = CURVED) -> blo.Hypergradient:
    theta = torch.tensor([0.3, 0.7], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return blo.value_and_hypergrad(
            lambda t, z: z.square().sum() + t.sum(), lower, theta, 0 * theta, gradient=strategy
        )


@pytest.mark.parametrize("strategy", KEPT)
def test_a_report_that_is_kept_keeps_no_graph_of_the_solve(strategy: blo.gradients.Strategy) -> None:
    marks: list[weakref.ref[_Mark]] = []

    def objective(t: Tensor, z: Tensor) -> Tensor:
        found: Tensor = CURVED.objective(t, z)
        if found.grad_fn is not None:
            found.grad_fn.metadata["mark"] = mark = _Mark()
            marks.append(weakref.ref(mark))
        return found

    out = _kept(strategy, replace(CURVED, objective=objective))
    report = out.report
    del out
    gc.collect()
    assert marks
    assert not [mark for mark in marks if mark() is not None]
    assert "lower solve" in str(report)  # and it can still be read


@pytest.mark.parametrize("constraint", [None, lambda t: blo.Box(-t / 2, t / 2)])
@pytest.mark.parametrize("strategy", KEPT)
def test_a_saved_hypergradient_tells_what_it_told(strategy: blo.gradients.Strategy, constraint: Any) -> None:
    lower = CURVED if constraint is None else replace(CURVED, constraint=constraint)
    out = _kept(strategy, lower)
    saved = io.BytesIO()
    torch.save(out, saved)
    saved.seek(0)
    for copied in (pickle.loads(pickle.dumps(out)), torch.load(saved, weights_only=False), deepcopy(out)):
        again = pickle.loads(pickle.dumps(copied))
        for one in (copied, again):
            assert str(one.report) == str(out.report)
            for name in ("ok", "lower_residual", "free", "product_error", "lower_error_bound", "adjoint_error_bound"):
                assert getattr(one.report, name) == getattr(out.report, name)
            assert torch.equal(one.grad, out.grad)
            assert torch.equal(one.implicit, out.implicit)


def test_a_saved_fit_is_continued() -> None:
    def fit(state: Any, steps: int) -> blo.FitResult:
        theta = torch.tensor([0.3, 0.7], dtype=torch.float64)
        return blo.fit(
            lambda t, z: (z - 0.1).square().sum(),
            CURVED,
            theta,
            0 * theta,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
            steps=steps,
            state=state,
        )

    half = pickle.loads(pickle.dumps(fit(None, 2)))
    assert half.hypergradient.report.ok
    assert torch.equal(fit(half.state, 2).theta, fit(None, 4).theta)
