"""The batched problems of the benchmarks and their floors, at sizes of seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import floors, peers
from benchmarks.against import batches, boxes, checkpoints
from benchmarks.boxed import Boxed, boxed
from benchmarks.measure import relative_error
from benchmarks.registry import Setting

QUICK = Setting(rounds=1, quick=True)


def _resolved(problem: Boxed, theta: np.ndarray) -> float:
    """Return the upper value after each lane has been solved again, by projected gradient alone."""
    b, matrix = theta * problem.scale.numpy(), problem.matrix.numpy()
    z = problem.z.numpy().copy()
    for _ in range(5000):
        z = np.clip(z - ((matrix @ z[..., None])[..., 0] - b), -1, 1)
    return float(problem.outer(torch.from_numpy(theta), torch.from_numpy(z)))


def test_the_exact_hypergradient_is_that_of_the_resolved_batch() -> None:
    problem = boxed(QUICK, 3, 5, condition=10.0)
    free = problem.z.abs() < 1
    assert 0 < int(free.sum()) < free.numel()  # some coordinates are held, and not all
    theta, step = problem.theta.numpy(), 1e-4
    numeric = [
        (_resolved(problem, theta + step * unit) - _resolved(problem, theta - step * unit)) / (2 * step)
        for unit in np.eye(5)
    ]
    np.testing.assert_allclose(problem.exact.numpy(), numeric, rtol=1e-6, atol=1e-8)


def test_the_floor_of_the_boxes_reaches_the_exact_hypergradient() -> None:
    problem = boxed(QUICK, 6, 12)
    assert relative_error(floors.boxed_hypergradient(problem, 11), problem.exact) <= 1e-6


def test_the_races_of_batches_run_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_MODULES", ("blo",))
    assert boxes.run(QUICK).goals[1].met
    outcome = batches.run(QUICK)
    rows, (goal,) = outcome.tables[0].rows, outcome.goals
    differences = [row[4] for row in rows]
    assert all(isinstance(value, float) and value <= 1e-12 for value in differences)
    _, loop, hand, hand_loop = (float(row[3] or 0.0) for row in rows)
    assert (goal.found, goal.limit) == (pytest.approx(loop), pytest.approx(hand_loop / hand))


def test_checkpoints_hold_less_and_give_the_same_gradient() -> None:
    whole, checkpointed = checkpoints.run(QUICK).tables[0].rows
    assert isinstance(checkpointed[2], float) and isinstance(whole[2], float)
    assert checkpointed[2] < whole[2]
    assert isinstance(checkpointed[6], float) and checkpointed[6] <= 1e-12
