"""The race of logistic regressions, at a size of seconds."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.against import logistic
from benchmarks.answers._digits import digits
from benchmarks.floors import conjugate_gradients, newton_cg
from benchmarks.registry import Setting


def test_the_floors_solve_their_problems() -> None:
    rng = np.random.default_rng(0)
    root, b = torch.as_tensor(rng.normal(size=(9, 6))), torch.as_tensor(rng.normal(size=6))
    matrix = root.T @ root
    truth = np.linalg.solve(matrix, b)
    for start in (torch.zeros_like(b), torch.ones_like(b)):
        found = conjugate_gradients(lambda v: matrix @ v, b, start, tol=1e-12, most=50)
        np.testing.assert_allclose(found, truth, rtol=1e-9)
    z = newton_cg(lambda t, z: (z - t).cosh().sum() + 0.5 * z @ matrix @ z, b, torch.zeros_like(b), tol=1e-10)
    np.testing.assert_allclose(torch.sinh(z - b) + matrix @ z, np.zeros(6), atol=1e-9)


def test_the_truth_falls_towards_its_least() -> None:
    value, least = logistic.truth(*digits((40, 40), 0))
    assert least < min(value(-14.0), value(0.0)) and least <= value(-7.0)


def test_blo_arrives_where_newton_by_hand_does() -> None:
    found = logistic.run(Setting(rounds=1, quick=True))
    by_hand, newton, default, _ = found.tables[0].rows
    for row in (newton, default):
        assert abs(float(row[2] or 0.0) - float(by_hand[2] or 0.0)) <= 1e-6
        assert float(row[1] or 0.0) < 0.05
