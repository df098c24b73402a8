"""`check_hypergrad` tells right hypergradients from wrong ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import blo
from blo._check import Part
from tests import oracles
from tests.integration.problems import EXACT, TIGHT, as_tensor, assert_near, few
from tests.oracles import Array, QuadraticCase
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


class Off(torch.autograd.Function):
    """The identity, with a derivative that is off by a share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (1 + ctx.share) * grad, None


def off(x: Tensor, share: float) -> Tensor:
    found: Tensor = Off.apply(x, share)
    return found


def bordered_by_hand(theta: Array, normal: Array | None) -> tuple[Array, Array]:
    """Return the minimiser of `quartic`, on `normal z = 1/10` if there is a normal, and its derivative in theta."""
    n, rows = len(theta), np.zeros((0, len(theta))) if normal is None else normal[None]
    border = np.block([[np.zeros((n, n)), rows.T], [rows, np.zeros((len(rows), len(rows)))]])
    x = np.zeros(n + len(rows))
    for _ in range(30):
        z, apart = x[:n], x[:n] - theta
        slope = 2 * (z - np.sin(theta)) + 4 * apart**3 + np.exp(z)
        matrix = border.copy()
        matrix[:n, :n] += np.diag(2 + 12 * apart**2 + np.exp(z))
        x = x - np.linalg.solve(matrix, np.append(slope, -0.1 * np.ones(len(rows))) + border @ x)
    mixed = np.vstack([np.diag(-2 * np.cos(theta) - 12 * apart**2), np.zeros((len(rows), n))])
    return x[:n], -np.linalg.solve(matrix, mixed)[:n]


@pytest.mark.parametrize("normal", [None, np.array([1.0, 2.0, -1.0])], ids=["free", "affine"])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-12, 1e-16, 1e-30])
def test_the_verdict_does_not_depend_on_the_unit_of_the_lower_objective(scale: float, normal: Array | None) -> None:
    theta = np.array([0.7, -0.3, 1.1])
    z, motion = bordered_by_hand(theta, normal)
    truth = motion.T @ (2 * z + theta) + z
    term = blo.Free() if normal is None else blo.Affine(as_tensor(normal[None]), as_tensor(np.array([0.1])))

    def quartic(theta: Tensor, z: Tensor) -> Tensor:
        return scale * ((z - theta.sin()) ** 2 + (z - theta) ** 4 + z.exp()).sum()

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z * z).sum() + z @ theta

    options = {"lower": blo.LowerProblem(quartic, term), "theta": as_tensor(theta), "z0": torch.zeros(3).double()}
    right = blo.check_hypergrad(upper, **options, directions=2)
    wrong = blo.check_hypergrad(lambda t, z: upper(t, off(z, 0.01)), **options, directions=2)
    assert right.ok and all(one.ok for one in (*right.findings, *right.consistency))
    assert not wrong.ok and wrong.culprit is Part.DIRECT
    generator = torch.Generator().manual_seed(0)
    for row in right.directions:
        unit = torch.randn(3, generator=generator, dtype=torch.float64)
        assert abs(row.measured - float(truth @ (unit / unit.norm()).numpy())) < row.noise < 1e-8


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4, 1e6, 1e9])
def test_the_verdict_does_not_depend_on_the_unit_of_theta(unit: float, grows: bool) -> None:
    """If F grows exponentially, it overflows over a displacement of theta that is not relative to a small theta."""
    theta = np.array([0.7, -0.3])
    z, beside = np.sin(theta), np.exp(theta) if grows else theta
    truth = (np.cos(theta) * (2 * z + beside) + z * (beside if grows else 1)) / unit

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return (z - (theta / unit).sin()).square().sum()

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z * z).sum() + z @ ((theta / unit).exp() if grows else theta / unit)

    options = {"lower": blo.LowerProblem(objective), "theta": as_tensor(unit * theta), "z0": torch.zeros(2).double()}
    right = blo.check_hypergrad(upper, **options, directions=2)
    in_theta = blo.check_hypergrad(lambda t, z: upper(off(t, 4e-4), z), **options, directions=2)
    in_z = blo.check_hypergrad(lambda t, z: upper(t, off(z, 4e-4)), **options, directions=2)
    assert right.ok and all(one.ok for one in (*right.findings, *right.consistency))
    assert not in_theta.ok and in_theta.culprit is Part.DIRECT
    assert not in_z.ok and in_z.culprit is Part.DIRECT
    generator = torch.Generator().manual_seed(0)
    for row in right.directions:
        drawn = torch.randn(2, generator=generator, dtype=torch.float64)
        assert abs(row.measured - float(truth @ (drawn / drawn.norm()).numpy())) < row.noise < 1e-8 * right.scale


def test_a_tight_solve_that_starts_far_away_ends_at_the_solution_in_a_small_unit() -> None:
    """There the gradient is many times larger than an error of one in z makes it at the solution."""
    theta = as_tensor(np.array([0.7, -0.3, 1.1]))
    far = blo.External(lambda theta, z0: theta + 1e4, tol=math.inf)
    lower = blo.LowerProblem(lambda t, z: 1e-14 * ((z - t.sin()) ** 2 + (z - t) ** 4).sum())
    check = blo.check_hypergrad(lambda t, z: z.sum(), lower, theta, torch.zeros(3).double(), solver=far, directions=1)
    z = np.zeros(3)
    for _ in range(30):
        apart = z - theta.numpy()
        z = z - (2 * (z - np.sin(theta.numpy())) + 4 * apart**3) / (2 + 12 * apart**2)
    assert check.lower_error == pytest.approx(np.linalg.norm(theta.numpy() + 1e4 - z), rel=1e-14)
    assert not check.ok and check.culprit is Part.LOWER


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


@pytest.mark.parametrize(
    "term",
    [blo.Free(), blo.Box(-0.3, 0.3), blo.Simplex(), blo.GroupLasso(0.3, torch.tensor([0, 0, 1, 1, 2, 2]))],
    ids=lambda term: type(term).__name__,
)
def test_the_check_costs_the_same_in_any_unit_of_the_objective(term: blo.sets.Set | blo.GroupLasso) -> None:
    """A tight solve ends at the rounding of the gradient, which grows with the objective."""
    root, mixing = normal(0, 6, 6), normal(1, 6, 6)
    H = root @ root.T + torch.eye(6, dtype=torch.float64)
    counts = []
    for scale in (1.0, 1e4, 1e-10):
        calls = []

        def objective(theta: Tensor, z: Tensor, scale: float = scale, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return scale * (0.5 * z @ H @ z - (mixing @ theta) @ z + 0.1 * z.logsumexp(0))

        if isinstance(term, blo.GroupLasso):
            lower = blo.LowerProblem(objective, penalty=replace(term, weight=scale * term.weight))
        else:
            lower = blo.LowerProblem(objective, term)
        start = torch.full((6,), 1 / 6, dtype=torch.float64)
        assert blo.check_hypergrad(lambda t, z: (z**2).sum(), lower, normal(2, 6), start).ok
        counts.append(len(calls))
    assert max(counts) < 2 * counts[0]


def test_a_step_that_changes_the_active_rows_blames_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    theta = {"p": 3 * torch.randn(6, generator=generator, dtype=torch.float64), "A": A, "b": torch.ones(12).double()}
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t["p"]).square().sum(), lambda t: blo.Halfspaces(t["A"], t["b"]))
    coarse = blo.check_hypergrad(
        lambda t, z: z.square().sum(), lower, theta, torch.zeros(6).double(), directions=2, step=0.05
    )
    assert coarse.ok and coarse.culprit is None
