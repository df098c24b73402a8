"""Cycles from true residuals: what is taken, what is not, and when a lane goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blo.linsolve._restart import Cycle, in_cycles

B = torch.tensor([[4.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)


def scripted(factor: Callable[[int], Any], log: list[tuple[Tensor, int]]) -> Callable[..., Cycle]:
    """Return a cycle for the identity that corrects by `factor(call) * r`, claiming two steps in each running lane."""

    def cycle(r: Tensor, running: Tensor, goal: Tensor, most: int) -> Cycle:
        log.append((running.squeeze(-1), most))
        steps = 2 * running.long()
        return Cycle(torch.as_tensor(factor(len(log) - 1)) * r, steps, torch.zeros_like(running), 2)

    return cycle


def run(factor: Callable[[int], Any], gain: float = 1.0, max_iter: int = 10) -> tuple[Any, list[tuple[Tensor, int]]]:
    log: list[tuple[Tensor, int]] = []
    options = {"tol": 1e-6, "max_iter": max_iter, "length": 3, "gain": gain, "method": "scripted"}
    return in_cycles(scripted(factor, log), lambda v: v, B, None, **options), log


def test_a_correction_that_makes_things_worse_is_not_taken() -> None:
    """Halved, halved, then thrown off in the first lane only."""
    away = torch.tensor([[-7.0], [0.5], [0.5]], dtype=torch.float64)
    found, log = run(lambda call: away if call == 2 else 0.5)
    torch.testing.assert_close(found.residual, torch.tensor([0.25, 2.0**-5, 2.0**-5], dtype=torch.float64))
    torch.testing.assert_close(found.x, B * (1 - found.residual[:, None]))
    assert [running.tolist() for running, _ in log] == [[True] * 3] * 3 + [[False, True, True]] * 2
    assert found.iterations.tolist() == [6, 10, 10]


def test_a_lane_stops_where_a_cycle_gains_too_little() -> None:
    found, log = run(lambda call: 0.25, gain=0.5)
    assert len(log) == 1
    torch.testing.assert_close(found.residual, torch.full((3,), 0.75, dtype=torch.float64))


def test_the_last_cycle_is_cut_to_the_iterations_left() -> None:
    _, log = run(lambda call: 0.5, max_iter=5)
    assert [most for _, most in log] == [3, 3, 1]


def test_a_nan_is_taken_on_and_shows_in_the_residual() -> None:
    found, log = run(lambda call: float("nan"))
    assert len(log) == 1 and found.residual.isnan().all() and not found.converged(1.0).any()


@pytest.mark.parametrize("factor", [1.0, 1 - 1e-7])
def test_a_solved_lane_needs_no_more(factor: float) -> None:
    found, log = run(lambda call: factor)
    assert len(log) == 1 and found.converged(1e-6).all() and found.method == "scripted"
