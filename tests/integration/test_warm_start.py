"""`state` starts the lower solver at its last solution and an iterative linear solver at its last adjoint."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import TIGHT, Counted, assert_near, hypergradient, quick
from tests.oracles import QuadraticCase
from tests.strategies import batched_cases, quadratic_cases


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@quick
@given(quadratic_cases())
def test_a_solved_problem_needs_no_steps_and_no_iterations(case: QuadraticCase) -> None:
    gradient = blo.Implicit(blo.CG(tol=1e-11))
    cold = hypergradient(case, gradient=gradient)
    warm = hypergradient(case, gradient=gradient, state=reloaded(cold.state))
    assert torch.equal(warm.z, cold.z)
    assert warm.report.lower_steps == 0
    assert warm.report.linear_iterations <= 1
    assert_near(warm.grad, case.hypergradient(case.theta), 1e-9)


@quick
@given(batched_cases())
def test_a_state_of_a_batch_travels_too(case: oracles.BatchedCase) -> None:
    def solved(state: dict[str, Any] | None = None) -> blo.Hypergradient:
        return blo.value_and_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, state=state)

    cold = solved()
    warm = solved(reloaded(cold.state))
    assert warm.report.lower_steps == 0
    assert_near(warm.grad, case.hypergradient(case.theta))


def test_after_a_small_move_of_theta_less_work_is_left() -> None:
    case = oracles.draw("ball", 6, 3, seed=2)
    moved = case.start() + 1e-6

    def work(state: dict[str, Any] | None) -> tuple[int, int, Tensor]:
        objective = Counted(case.objective)
        out = blo.value_and_hypergrad(
            case.upper,
            blo.LowerProblem(objective, case.constraint),
            moved,
            case.z0(),
            solver=blo.ProjectedGradient(tol=1e-9),
            gradient=blo.Implicit(blo.CG(tol=1e-6)),
            state=state,
        )
        return objective.calls, out.report.linear_iterations, out.grad

    cold_calls, cold_iterations, cold = work(None)
    warm_calls, warm_iterations, warm = work(hypergradient(case).state)
    assert warm_calls < cold_calls
    assert warm_iterations < cold_iterations
    assert_near(warm, case.hypergradient(moved.numpy()), 1e-5)
    assert_near(cold, case.hypergradient(moved.numpy()), 1e-5)


def test_the_state_takes_the_place_of_z0() -> None:
    case = oracles.draw("free", 3, 2, seed=2)
    solver = blo.OneStep(0.1)
    first = hypergradient(case, solver=solver, gradient=blo.Zero())
    second = hypergradient(case, solver=solver, gradient=blo.Zero(), state=first.state)
    z = case.z0().numpy()
    for _ in range(2):
        z = z - 0.1 * case.gradient(case.theta, z)
    assert_near(second.z, z, 1e-14)


@pytest.mark.parametrize("before", [blo.Zero(), blo.Unrolled(), blo.KKTClosedForm(), blo.Implicit()], ids=str)
def test_a_state_outlives_a_change_of_strategy(before: blo.gradients.Strategy) -> None:
    case = oracles.draw("box", 3, 2, seed=2)
    state = hypergradient(case, gradient=before, on_failure="ignore").state
    assert_near(hypergradient(case, state=reloaded(state)).grad, case.hypergradient(case.theta))


def test_trees_keep_their_structure_in_the_state() -> None:
    lower = blo.LowerProblem(lambda t, z: (z["w"] - t).square().sum() + (z["b"][0] + t).square().sum())
    z0 = {"w": torch.zeros(2, 3).double(), "b": (torch.zeros(4).double(),)}
    theta = torch.tensor(0.4).double()

    def upper(theta: Tensor, z: Any) -> Tensor:
        return z["w"].pow(3).sum() + z["b"][0].pow(3).sum()

    out = blo.value_and_hypergrad(upper, lower, theta, z0)
    state = reloaded(out.state)
    assert torch.equal(state["z"]["w"], out.z["w"]) and torch.equal(state["z"]["b"][0], out.z["b"][0])
    again = blo.value_and_hypergrad(upper, lower, theta, z0, state=state)
    assert again.report.lower_steps == 0
    assert_near(again.grad, 3 * 0.4**2 * (6 - 4), 1e-6)


def test_a_state_is_not_changed_by_its_use() -> None:
    case = oracles.draw("simplex", 4, 2, seed=2)
    state = hypergradient(case, gradient=blo.Implicit()).state
    before = {name: tensor.clone() for name, tensor in state.items()}
    moved = case.start() + 0.01
    blo.value_and_hypergrad(case.upper, case.lower(), moved, case.z0(), solver=TIGHT, state=state)
    assert all(torch.equal(state[name], before[name]) for name in before)


BAD: dict[str, dict[str, Any]] = {
    "z of another shape": {"z": torch.zeros(4).double(), "q": None},
    "z of another structure": {"z": (torch.zeros(3).double(),), "q": None},
    "z of another precision": {"z": torch.zeros(3), "q": None},
    "q of another shape": {"z": torch.zeros(3).double(), "q": torch.zeros(1).double()},
    "q of another precision": {"z": torch.zeros(3).double(), "q": torch.zeros(3)},
    "q missing": {"z": torch.zeros(3).double()},
    "z missing": {"q": None},
    "empty": {},
}


@pytest.mark.parametrize("state", BAD.values(), ids=BAD.keys())
def test_a_state_of_another_problem_is_refused(state: dict[str, Any]) -> None:
    case = oracles.draw("box", 3, 2, seed=2)
    with pytest.raises(blo.StructureError, match="state"):
        hypergradient(case, gradient=blo.Implicit(), state=state)
