"""The upper loop: it arrives at the optimum that NumPy and SciPy find, and continues as if never interrupted."""

from __future__ import annotations

import gc
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import blo
from tests.integration.problems import assert_near

RNG = np.random.default_rng(0)
X, Y, X2, Y2 = (RNG.normal(size=shape) for shape in ((20, 4), 20, (15, 4), 15))
Y, Y2 = Y + X @ [2.0, 0.5, 0.0, 0.0], Y2 + X2 @ [2.0, 0.5, 0.0, 0.0]
TRAIN, HELD = [(torch.as_tensor(a), torch.as_tensor(b)) for a, b in ((X, Y), (X2, Y2))]
LOWER = blo.LowerProblem(
    lambda t, z: 0.5 * (TRAIN[0] @ z - TRAIN[1]).square().sum() + 0.5 * (t["log"].exp() * z.square()).sum()
)
THETA, Z0 = {"log": torch.zeros(4).double(), "data": torch.arange(2)}, torch.zeros(4).double()
SETTINGS: Any = {"solver": blo.ProjectedGradient(tol=1e-11, max_steps=5000), "gradient": blo.Implicit(blo.Direct())}


def upper(theta: Any, z: Tensor) -> Tensor:
    """Held-out loss, with a prior on theta that makes the optimum a finite one."""
    return 0.5 * (HELD[0] @ z - HELD[1]).square().sum() + 0.05 * theta["log"].square().sum()


def value(log: Any) -> float:
    """Return the upper objective by the normal equations."""
    z = np.linalg.solve(X.T @ X + np.diag(np.exp(log)), X.T @ Y)
    return float(0.5 * np.sum((X2 @ z - Y2) ** 2) + 0.05 * np.sum(log**2))


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)


def lbfgs(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(
        parameters, max_iter=30, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )


@pytest.mark.parametrize(("optimizer", "steps"), [(adam, 1000), (lbfgs, 3)], ids=["adam", "lbfgs"])
def test_it_arrives_at_the_optimum(optimizer: Any, steps: int) -> None:
    truth = minimize(value, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    result = blo.fit(upper, LOWER, THETA, Z0, optimizer=optimizer, steps=steps, **SETTINGS)
    assert_near(result.theta["log"], truth.x, 1e-5)
    assert abs(value(result.theta["log"].numpy()) - truth.fun) < 1e-10
    assert abs(float(result.values[0]) - value(np.zeros(4))) < 1e-9
    assert torch.equal(result.theta["data"], THETA["data"]) and torch.equal(THETA["log"], torch.zeros(4))


def test_a_fit_continued_from_a_file_is_one_that_never_stopped() -> None:
    whole = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=7, **SETTINGS)
    part = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=3, **SETTINGS)
    file = io.BytesIO()
    torch.save(part.state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    rest = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=4, state=state, **SETTINGS)
    assert torch.equal(rest.theta["log"], whole.theta["log"])
    assert torch.equal(torch.cat([part.values, rest.values]), whole.values)


def test_a_state_can_be_continued_more_than_once() -> None:
    whole = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=5, **SETTINGS)
    part = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=3, **SETTINGS)
    for _ in range(2):
        rest = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=2, state=part.state, **SETTINGS)
        assert torch.equal(rest.theta["log"], whole.theta["log"])


def test_what_is_told_of_a_step_belongs_to_the_theta_before_it() -> None:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - 3.0).square().sum(), lambda t: blo.Box(-1.0, t))
    theta, z0 = torch.tensor([0.5, 0.25]).double(), torch.zeros(2).double()
    seen: list[tuple[float, float | None]] = []

    def callback(step: int, theta: Tensor, out: blo.Hypergradient) -> None:
        seen.append((float(out.value), out.report.lower_residual))

    result = blo.fit(
        lambda t, z: t[0],  # a view of theta
        lower,
        theta,
        z0,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.125),
        steps=2,
        solver=blo.External(lambda t, z: t),  # z is at its upper bound, which is theta
        callback=callback,
    )
    assert seen == [(0.5, 0.0), (0.375, 0.0)] and result.values.tolist() == [0.5, 0.375]
    assert result.z.tolist() == [0.375, 0.25] and result.theta.tolist() == [0.25, 0.25]


def test_each_step_is_that_of_the_optimiser_on_the_hypergradient() -> None:
    out = blo.value_and_hypergrad(upper, LOWER, THETA, Z0, **SETTINGS)
    result = blo.fit(upper, LOWER, THETA, Z0, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), steps=1, **SETTINGS)
    assert_near(result.theta["log"], -0.01 * out.grad["log"], 1e-14)
    assert torch.equal(result.hypergradient.grad["log"], out.grad["log"])


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_unrolling_starts_from_the_same_point_each_time(tol: float | None) -> None:
    few: Any = {
        "solver": blo.ProjectedGradient(step=0.01, max_steps=500 if tol else 3, tol=tol),
        "gradient": blo.Unrolled(),
    }
    theta = THETA
    for _ in range(3):
        slope = blo.value_and_hypergrad(upper, LOWER, theta, Z0, **few).grad["log"]
        theta = {"log": theta["log"] - 0.01 * slope, "data": theta["data"]}
    result = blo.fit(upper, LOWER, THETA, Z0, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), steps=3, **few)
    assert_near(result.theta["log"], theta["log"], 1e-14)


def test_unrolling_goes_on_from_the_same_point_after_another_strategy() -> None:
    part = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=2, **SETTINGS)
    few: Any = {"solver": blo.ProjectedGradient(step=0.01, max_steps=3, tol=None), "gradient": blo.Unrolled()}
    rest = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=1, state=part.state, **few)
    z = Z0
    for _ in range(3):
        z = z - 0.01 * (TRAIN[0].T @ (TRAIN[0] @ z - TRAIN[1]) + part.theta["log"].exp() * z)
    assert_near(rest.z, z, 1e-12)


def test_hypergradients_within_a_step_are_let_go() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(found) is blo.Hypergradient for found in gc.get_objects())

    before, seen = alive(), []
    result = blo.fit(
        upper, LOWER, THETA, Z0, optimizer=lbfgs, steps=1, callback=lambda *_: seen.append(alive() - before), **SETTINGS
    )
    assert seen == [2] and result.state["optimizer"]["state"][0]["func_evals"] > 5


def test_the_callback_sees_each_step_and_stops_the_loop() -> None:
    seen = []

    def callback(step: int, theta: Any, out: blo.Hypergradient) -> bool:
        seen.append((step, theta["log"].clone(), out.value))
        return step == 3

    result = blo.fit(upper, LOWER, THETA, Z0, optimizer=adam, steps=9, callback=callback, **SETTINGS)
    assert [step for step, _, _ in seen] == [1, 2, 3] and len(result.values) == 3
    assert torch.equal(seen[-1][1], result.theta["log"])
    assert torch.equal(torch.stack([v for _, _, v in seen]), result.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": torch.optim.SGD([torch.ones(1)], lr=0.1)}, "is one already"),
        ({"optimizer": lambda p: None}, "but gave NoneType"),
        ({"theta": {"log": torch.arange(2)}}, "at least one floating point tensor"),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"state": 3}, "`state` must be the `.state` of an earlier fit, but is of type int"),
        ({"state": {"z": Z0}}, r"an earlier fit, but holds \['z'\]"),
    ],
)
def test_bad_arguments_are_named(changes: Any, message: str) -> None:
    given = {"theta": THETA, "optimizer": adam, "steps": 1} | changes
    with pytest.raises(ValueError, match=message):
        blo.fit(upper, LOWER, given.pop("theta"), Z0, **given)


def test_each_kind_of_warning_is_given_once() -> None:
    early = blo.ProjectedGradient(0.01, max_steps=2)
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum())

    def fit() -> None:
        blo.fit(
            lambda t, z: z.square().sum(),
            lower,
            torch.ones(2, dtype=torch.float64),
            torch.zeros(2, dtype=torch.float64),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            steps=6,
            solver=early,
            gradient=blo.Implicit(blo.CG(max_iter=1)),
        )

    for _ in range(2):  # another call tells again
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fit()
        assert [str(one.message)[:9] for one in told] == ["the lower"]
        assert told[0].filename == __file__
