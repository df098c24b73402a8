"""`check_hypergrad` tells right hypergradients from wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import EXACT, TIGHT, as_tensor, assert_near, few
from tests.oracles import QuadraticCase
from tests.strategies import normal, quadratic_cases


@few
@given(quadratic_cases())
def test_right_hypergradients_pass_and_the_measured_slopes_are_true(case: QuadraticCase) -> None:
    check = blo.check_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=EXACT)
    assert check.ok
    truth = case.hypergradient(case.theta)
    generator = torch.Generator().manual_seed(0)
    for row in check.directions:
        unit = torch.randn(len(truth), generator=generator, dtype=torch.float64)
        slope = float(truth @ (unit / unit.norm()).numpy())
        assert_near(torch.tensor([row.predicted, row.measured]).double(), np.array([slope, slope]), 1e-7)
        assert row.error == abs(row.predicted - row.measured)
    assert check.lower_error < 1e-10


@pytest.mark.parametrize(
    "wrong",
    [blo.Zero(), blo.HessianFree(0.3), blo.Implicit(blo.Identity(0.3)), blo.Implicit(blo.Direct(damping=1.0))],
    ids=str,
)
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_wrong_hypergradients_fail(kind: oracles.Kind, wrong: blo.gradients.Strategy) -> None:
    case = oracles.draw(kind, 4, 2, seed=9, moving=False)
    right = blo.check_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT)
    check = blo.check_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=wrong)
    assert right.ok and not check.ok
    assert "DISAGREES" in str(check) and "DISAGREES" not in str(right)


def test_a_gradient_exact_for_its_short_solver_alone_fails_and_shows_the_lower_error() -> None:
    case = oracles.draw("box", 4, 2, seed=9)
    solver = blo.ProjectedGradient(step=0.1, max_steps=2, tol=None)
    check = blo.check_hypergrad(
        case.upper, case.lower(), case.start(), case.z0(), solver=solver, gradient=blo.Unrolled()
    )
    assert not check.ok
    z = case.z0().clone()
    box = case.constraint(case.start())
    for _ in range(2):
        slope = as_tensor(case.gradient(case.theta, z.numpy()))
        z = (z - 0.1 * slope).clamp(box.low, box.high)
    truth = np.linalg.norm(z.numpy() - case.solution(case.theta))
    assert check.lower_error == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_verdict_does_not_depend_on_the_unit_of_the_upper_objective(factor: float) -> None:
    case = oracles.draw("ball", 3, 2, seed=3)

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return factor * case.upper(theta, z)

    options = {"solver": TIGHT}
    assert blo.check_hypergrad(upper, case.lower(), case.start(), case.z0(), gradient=EXACT, **options).ok
    assert not blo.check_hypergrad(upper, case.lower(), case.start(), case.z0(), gradient=blo.Zero(), **options).ok


def test_a_small_error_in_the_implicit_part_is_found() -> None:
    """An error of one thousandth: the curvature of the boundary left out of one coordinate in a thousand, say."""
    case = oracles.draw("free", 4, 2, seed=3)
    wrong = blo.Implicit(blo.Direct(damping=1e-3))
    assert not blo.check_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=wrong).ok


def test_trees_batches_and_single_precision() -> None:
    weights = normal(0, 5, 3).float()

    def objective(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return (z - weights * theta["a"]).square().sum(-1) + (theta["b"][0] * z).pow(2).sum(-1)

    lower = blo.LowerProblem(objective, blo.L2Ball(0.7), batched=True)
    theta = {"a": torch.tensor([0.5, -1.0, 2.0]), "b": (torch.tensor(0.7),), "index": torch.tensor([1, 2])}
    solver = blo.ProjectedGradient(tol=1e-5)

    def upper(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return (z - 1).square().sum() + theta["a"].sum()

    check = blo.check_hypergrad(upper, lower, theta, torch.zeros(5, 3), solver=solver)
    assert check.ok
    assert not blo.check_hypergrad(upper, lower, theta, torch.zeros(5, 3), solver=solver, gradient=blo.Zero()).ok


def test_the_number_of_directions_and_the_seed_are_respected() -> None:
    case = oracles.draw("free", 2, 3, seed=3)

    def predicted(**options: int) -> list[float]:
        check = blo.check_hypergrad(case.upper, case.lower(), case.start(), case.z0(), **options)
        return [row.predicted for row in check.directions]

    assert len(predicted(directions=7)) == 7
    assert predicted(seed=1) == predicted(seed=1) != predicted(seed=2)


def test_the_table_shows_verdict_slopes_and_report() -> None:
    case = oracles.draw("simplex", 3, 2, seed=3)
    check = blo.check_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT)
    lines = str(check).splitlines()
    assert lines[0] == "the hypergradient agrees with finite differences"
    assert "predicted" in lines[1] and f"{check.directions[0].measured:+.8e}" in lines[2]
    assert str(check).endswith(str(check.hypergradient.report))


@pytest.mark.parametrize("constraint", [blo.Free(), blo.Box(-0.3, 0.3), blo.Simplex()], ids=str)
def test_the_check_costs_the_same_in_any_unit_of_the_objective(constraint: blo.sets.Set) -> None:
    """A tight solve ends at the rounding of the gradient, which grows with the objective."""
    root, mixing = normal(0, 6, 6), normal(1, 6, 6)
    H = root @ root.T + torch.eye(6, dtype=torch.float64)
    counts = []
    for scale in (1.0, 1e4):
        calls = []

        def objective(theta: Tensor, z: Tensor, scale: float = scale, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return scale * (0.5 * z @ H @ z - (mixing @ theta) @ z + 0.1 * z.logsumexp(0))

        lower = blo.LowerProblem(objective, constraint)
        start = torch.full((6,), 1 / 6, dtype=torch.float64)
        assert blo.check_hypergrad(lambda t, z: (z**2).sum(), lower, normal(2, 6), start).ok
        counts.append(len(calls))
    assert counts[1] < 2 * counts[0]


def test_a_step_that_changes_the_active_rows_blames_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    theta = {"p": 3 * torch.randn(6, generator=generator, dtype=torch.float64), "A": A, "b": torch.ones(12).double()}
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t["p"]).square().sum(), lambda t: blo.Halfspaces(t["A"], t["b"]))
    coarse = blo.check_hypergrad(
        lambda t, z: z.square().sum(), lower, theta, torch.zeros(6).double(), directions=2, step=0.05
    )
    assert coarse.ok and coarse.culprit is None
