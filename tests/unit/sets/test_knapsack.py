"""Bounds beside one sum, with weights of either sign, and half spaces in which they are recognised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blo import Halfspaces
from blo._layout import Layout
from blo.sets._bounds_and_sum import bounds_and_sum
from blo.sets._knapsack import Knapsack
from tests import oracles
from tests.lower import Counted

LANES = 4


def rows_of(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bounds on some coordinates beside a sum, in any order, with a point at which they hold."""
    member = rng.normal(size=n)
    bounds = [side * rng.uniform(0.2, 3.0) * unit for unit in np.eye(n) for side in (1, -1) if rng.uniform() < 0.7]
    bounds.append(np.eye(n)[0])
    room = rng.exponential(size=len(bounds)) * (rng.uniform(size=len(bounds)) < 0.8)
    row = rng.normal(size=n) * (rng.uniform(size=n) < 0.8)
    row[:2] = 1.0, -0.3
    beside = {"bounds": [], "inequality": [row], "equation": [row, -row]}[kind]
    right = np.concatenate([np.stack(bounds) @ member + room, [side @ member for side in beside]])
    right[-1] += 0.3 * rng.exponential() * (kind == "inequality")
    order = rng.permutation(len(right))
    return np.stack([*bounds, *beside])[order], right[order], member


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["bounds", "inequality", "equation"])
def test_the_projection_is_that_of_non_negative_least_squares(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    A, b, member = rows_of(kind, int(rng.integers(2, 7)), rng)
    points = member + 3 * rng.normal(size=(LANES, len(member)))
    z = torch.as_tensor(points)
    halves = Halfspaces(torch.as_tensor(A), torch.as_tensor(b)).fit(Layout.of(z, batched=True))
    assert halves.knapsack is not None
    truth = np.stack([oracles.project_polyhedron(point, A, b) for point in points])
    near = halves.project(z)
    np.testing.assert_allclose(near, truth, rtol=0, atol=1e-10)
    live = z.clone().requires_grad_()  # which is projected by the search for active rows
    torch.testing.assert_close(halves.project(live).detach(), near, rtol=1e-12, atol=1e-12)


def test_a_capped_simplex_as_half_spaces_takes_no_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    n, cap = 20, 0.12
    eye, one = torch.eye(n).double(), torch.ones(1, n).double()
    b = torch.cat([torch.tensor([1.0, -1.0]), torch.full((n,), cap, dtype=torch.float64), torch.zeros(n)])
    points = np.random.default_rng(0).normal(size=(64, n)) / 2
    halves = Halfspaces(torch.cat([one, -one, eye, -eye]), b).fit(Layout.of(torch.as_tensor(points), batched=True))
    factorise = Counted(torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
    near = halves.project(torch.as_tensor(points))
    assert factorise.calls == 0
    truth = [oracles.project_capped_simplex(point, 1.0, np.full(n, cap)) for point in points]
    np.testing.assert_allclose(near, truth, rtol=0, atol=1e-14)


def test_a_zero_of_a_row_that_theta_moves_has_its_derivative() -> None:
    """At theta = 0 the row is a bound, and turns away from it."""

    def near(theta: torch.Tensor) -> torch.Tensor:
        row = torch.stack([torch.ones_like(theta), theta])
        return Halfspaces(row[None], 1.0).project(torch.tensor([3.0, 2.0], dtype=torch.float64))

    theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(near(theta)[0], theta)
    assert slope.item() == pytest.approx(-2.0, abs=1e-12)  # z_0 + theta z_1 = 1


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]], [1.0, 1.0, 1.0]),
        ([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]], [1.0, 2.0, 1.0]),
        ([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]], [1.0, 0.0, 1.0]),
        ([[1.0, 1.0]], [1.0]),
        ([[1.0, 0.0], [0.0, 0.0]], [1.0, -1.0]),
        ([[1.0, 0.0], [1.0, 1.0]], [float("nan"), 1.0]),
    ],
    ids=["two sums", "a sum twice", "a slab", "no bound", "an empty row", "a NaN"],
)
def test_anything_else_is_left_to_the_search(rows: list[list[float]], right: list[float]) -> None:
    assert bounds_and_sum(torch.tensor(rows), torch.tensor(right), 0) is None


@pytest.mark.parametrize("equations", [1, 2])
def test_equations_are_bounds_and_sums_too(equations: int) -> None:
    rows = torch.tensor([[0.0, -1.0, 0.0], [0.6, 0.0, 0.8], [1.0, 0.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([-0.5, 1.0, 0.1], dtype=torch.float64)
    found = bounds_and_sum(rows, right, equations)
    assert found is not None and bool(found.equal) == (equations == 2)
    near = found.fill(torch.tensor([-1.0, 3.0, 0.0], dtype=torch.float64)).point
    truth = torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float64)
    if equations == 2:
        truth = truth + (1.0 + 0.6) * torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
        truth[0] = min(truth[0], 0.1)
    torch.testing.assert_close(near, truth, rtol=1e-14, atol=1e-14)


def test_a_sum_out_of_reach_is_empty() -> None:
    none, one = torch.zeros(2, 2).double(), torch.ones(2, 2).double()
    right = torch.tensor([[2.1], [-0.1]], dtype=torch.float64)
    equal = Knapsack(none, one, one, right, torch.tensor([[True], [True]]))
    assert equal.fill(none).empty.tolist() == [[True], [True]] and equal.fill(none).point.isnan().all()
    at_most = equal._replace(equal=torch.tensor([[False], [False]]))
    assert at_most.fill(none).empty.tolist() == [[False], [True]]
