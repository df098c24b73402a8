"""The problems with known answers: at sizes for a test blo is right and warns of nothing, and errors are noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import blo
from benchmarks.answers import logistic
from benchmarks.answers._compare import Answers
from benchmarks.registry import Setting, discover

NAMES = [name for name in discover() if name.startswith("answer-")]


@pytest.mark.parametrize("name", NAMES)
def test_blo_gives_the_known_answer(name: str) -> None:
    outcome = discover()[name].run(Setting(quick=True))
    assert outcome.goals and all(goal.met for goal in outcome.goals), outcome.tables[0].rows
    assert len(outcome.tables[0].rows) >= 2


@pytest.mark.parametrize("wrong", [1.0 + 2e-6, math.nan])
def test_a_wrong_answer_misses_the_goal(wrong: float) -> None:
    answers = Answers()
    answers.add("wrong", torch.tensor([1.0, wrong], dtype=torch.float64), np.ones(2))
    answers.add("right", 1.0, 1.0)
    assert not answers.outcome("both").goals[0].met


def test_small_answers_are_held_to_their_own_size() -> None:
    answers = Answers()
    assert answers.add("small", 1.0e-8 + 1e-13, 1e-8) == pytest.approx(1e-5, rel=1e-6)
    assert answers.add("zero", 1e-9, 0.0) == pytest.approx(1e-9)
    assert answers.add("scaled", 1e-8 + 1e-9, 1e-8, scale=1.0) == pytest.approx(1e-9)


def test_an_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\), the truth \(1, 2\)"):
        Answers().add("x", torch.ones(2), np.ones((1, 2)))


def test_the_data_of_the_notebook_are_those_of_train_test_split() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    random = np.random.RandomState(1)
    oracle = random.randn(20)
    x = random.randn(1000, 20)
    y = (x @ oracle + 0.1 * random.randn(1000) > 0).astype(float)
    x_train, x_held, y_train, y_held = model_selection.train_test_split(x, y, test_size=0.5, random_state=random)
    data = logistic.draw()
    for ours, theirs in zip(data, (x_train, y_train, x_held, y_held), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_least_loss_of_the_weights_is_that_of_another_method(seed: int) -> None:
    data = logistic.draw(quick=True, seed=seed)
    least, h = logistic.optimum(data)

    def value(s: np.ndarray) -> tuple[float, np.ndarray]:
        found, slope = logistic.truth(data, s / (1 - s))
        return found, slope / (1 - s) ** 2

    found = minimize(value, np.full(3, 0.3), jac=True, method="TNC", bounds=[(logistic.LOW, logistic.HIGH)] * 3)
    assert least <= found.fun and found.fun == pytest.approx(least, rel=1e-6)
    assert logistic.stationarity(data, h) <= 1e-6


@pytest.mark.parametrize("start", [logistic.LOW, 0.5, logistic.HIGH])
@pytest.mark.parametrize("seed", [1, 2])
def test_weights_leave_bounds_at_which_their_angles_are_stationary(seed: int, start: float) -> None:
    data = logistic.draw(quick=True, seed=seed)
    reached = logistic.angled(data, torch.device("cpu"), start).numpy()
    assert logistic.truth(data, reached)[0] == pytest.approx(logistic.optimum(data)[0], rel=1e-9)


def test_a_feature_that_is_all_but_dropped_is_dropped() -> None:
    data = logistic.draw()
    assert logistic.angled(data, torch.device("cpu"), 0.05).max() >= 1e6


def test_weights_do_not_depend_on_the_unit_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    data, cpu = logistic.draw(quick=True), torch.device("cpu")
    held_out, train = logistic.losses(data, cpu)
    monkeypatch.setattr(logistic, "losses", lambda data, device: (lambda h, z: 1e-6 * held_out(h, z), train))
    reached = logistic.angled(data, cpu).numpy()
    assert logistic.truth(data, reached)[0] == pytest.approx(logistic.optimum(data)[0], rel=1e-9)


@pytest.mark.parametrize("low", [1e-8, 1e-4, 1e2])
def test_hypergradients_of_weights_of_all_sizes_are_those_of_the_dense_formula(low: float) -> None:
    data = logistic.draw()
    h = low * 10 ** np.random.default_rng(0).uniform(0, 4, 20)
    held_out, train = logistic.losses(data, torch.device("cpu"))
    at, none = torch.as_tensor(h), torch.zeros(20, dtype=torch.float64)
    found = blo.value_and_hypergrad(held_out, blo.LowerProblem(train), at, none, solver=logistic.SOLVER)
    value, slope = logistic.truth(data, h)
    assert float(found.value) == pytest.approx(value, rel=1e-11)
    np.testing.assert_allclose(found.grad, slope, rtol=1e-9, atol=1e-9 * np.abs(slope).max())
