"""Active rows by exchanges: how many they take, and that the method for hard cases gives the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from blo import Halfspaces
from blo._layout import Layout
from blo.sets import _active_set
from blo.sets._exchange import Found, exchange
from tests import oracles
from tests.lower import Counted
from tests.strategies import normal

LANES = 16


def case(how: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, right-hand sides and points of as many lanes."""
    rng = np.random.default_rng(seed)
    n = {"more rows": 3, "apex": 3}.get(how, 8)
    A, member = rng.normal(size=(6, n)), rng.normal(size=n)
    if how == "more rows":
        A = rng.normal(size=(12, n))
    if how == "repeated":
        A = np.vstack([A, 2 * A])
    if how == "redundant":
        A = np.vstack([A, A[:1] + A[1:2]])
    if how == "parallel":
        A = np.vstack([A, A[::-1], -A])
    room = rng.exponential(size=len(A)) * (how != "apex")
    scale = 1e4 if how == "far" else 2.0
    return A, A @ member + room, member + scale * rng.normal(size=(LANES, n))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["general", "repeated", "redundant", "parallel", "far", "more rows", "apex"])
def test_both_methods_find_the_nearest_point(how: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    A, b, points = case(how, seed)
    truth = np.stack([oracles.project_polyhedron(point, A, b) for point in points])
    z = torch.as_tensor(points)
    halves = Halfspaces(torch.as_tensor(A), torch.as_tensor(b)).fit(Layout.of(z, batched=True))
    size = np.abs(points).max()
    np.testing.assert_allclose(halves.project(z), truth, rtol=0, atol=1e-12 * size)
    alone = Halfspaces(torch.as_tensor(A), torch.as_tensor(b))
    np.testing.assert_allclose(torch.vmap(alone.project)(z), truth, rtol=0, atol=1e-12 * size)

    def half(*args: Any) -> Found:
        found = exchange(*args)
        return found._replace(solved=found.solved & (torch.arange(LANES) % 2 == 0).unsqueeze(-1))

    monkeypatch.setattr(_active_set, "exchange", half)
    np.testing.assert_allclose(halves.project(z), truth, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("how", ["general", "repeated", "far", "more rows"])
def test_few_factorisations_find_many_rows(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, each row that is active takes a factorisation at least."""
    rng = np.random.default_rng(0)
    A, b = torch.as_tensor(rng.normal(size=(24, 60))), torch.full((24,), 0.1, dtype=torch.float64)
    if how == "repeated":
        A, b = torch.cat([A, A]), torch.cat([b, b + 0.01])
    if how == "more rows":
        A, b = torch.as_tensor(rng.normal(size=(90, 60))), torch.full((90,), 0.1, dtype=torch.float64)
    z = normal(1, LANES, 60, scale=1e5 if how == "far" else 1.0)
    halves = Halfspaces(A, b).fit(Layout.of(z, batched=True))
    factorise = Counted(torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
    near = halves.project(z)
    assert factorise.calls <= {"repeated": 12, "more rows": 27}.get(how, 5)
    active = halves.tangent(near, near - z).counts().active
    assert active.amax() >= 12


def test_a_point_of_the_set_stays_and_takes_one_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(0, 5).requires_grad_()
    halves = Halfspaces(normal(1, 4, 5), 100.0).fit(Layout.of(z, batched=False))
    factorise = Counted(torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
    assert torch.equal(halves.project(z), z) and factorise.calls == 1
