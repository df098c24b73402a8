"""The problems of the benchmarks, their floors and the races, at sizes of seconds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks import floors, peers
from benchmarks.against import quadratics, ridge, robustness
from benchmarks.measure import relative_error
from benchmarks.registry import Setting
from benchmarks.smooth import Smooth
from benchmarks.smooth import quadratic as make_quadratic
from benchmarks.smooth import ridge as make_ridge

QUICK = Setting(rounds=1, quick=True)


def _resolved(problem: Smooth, theta: np.ndarray) -> float:
    """Return the upper value after the lower problem, whose gradient is affine in z, has been solved again."""
    at = torch.from_numpy(theta)

    def slope(z: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(problem.inner, argnums=1)(at, z)

    zero = torch.zeros_like(problem.z)
    matrix = torch.func.jacrev(slope)(zero).numpy()
    z = np.linalg.solve(matrix, -slope(zero).numpy())
    return float(problem.outer(at, torch.from_numpy(z)))


@pytest.mark.parametrize(
    "problem",
    [lambda: make_ridge(QUICK, 40, 6), lambda: make_quadratic(QUICK, 1e2, 6)],
    ids=["ridge", "quadratic"],
)
def test_the_exact_hypergradient_is_that_of_the_resolved_problem(problem: Callable[[], Smooth]) -> None:
    made = problem()
    theta, step = made.theta.numpy(), 1e-4
    numeric = [
        (_resolved(made, theta + step * unit) - _resolved(made, theta - step * unit)) / (2 * step)
        for unit in np.eye(len(theta))
    ]
    np.testing.assert_allclose(made.exact.numpy(), numeric, rtol=1e-6, atol=1e-8)


def test_the_floor_reaches_the_exact_hypergradient() -> None:
    problem = make_ridge(QUICK, 60, 20)
    assert relative_error(floors.hypergradient(problem, 40), problem.exact) <= 1e-10
    assert relative_error(floors.hypergradient(problem, 3), problem.exact) >= 1e-3  # and not before it can


@pytest.mark.parametrize("products", [1, 5, 12])
def test_blo_and_the_floor_are_at_the_same_iterate(products: int) -> None:
    problem = make_quadratic(QUICK, 1e3, 20)
    found = next(peer for peer in peers.load() if peer.name == "blo").adapter
    assert found is not None
    prepared = found.prepare(problem, products)
    assert relative_error(prepared.read(prepared.run()), floors.hypergradient(problem, products)) <= 1e-8


def test_a_peer_that_is_not_there_is_shown_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_MODULES", ("blo", "a-library-nobody-has"))
    table = robustness.run(QUICK).tables[0]
    assert table.columns == ["case", "blo", "a-library-nobody-has"]
    assert {row[2] for row in table.rows} == {"absent"}
    assert "not installed" in table.notes[0]
    rows = ridge.run(QUICK).tables[0].rows
    assert ["a-library-nobody-has", "absent: not installed", *[None] * 6] in rows


def test_blo_meets_every_goal_of_the_corner_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_MODULES", ("blo",))
    goals = robustness.run(QUICK).goals
    assert len(goals) == 5
    assert [goal.what for goal in goals if not goal.met] == []


def test_the_errors_against_products_fall_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_MODULES", ("blo",))
    curve = quadratics.run(QUICK).extra["errors"]["1e+03"]["blo"]
    assert curve[-1] <= 1e-12 < curve[0]
    assert all(math.isfinite(error) for error in curve)
