"""What goes around the upper steps: schedules, callbacks, checkpoints, progress and files."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import blo
from tests.oracles import Array

RNG = np.random.default_rng(3)
M, C, D = RNG.normal(size=(3, 2)), RNG.normal(size=3), RNG.normal(size=3)
LOWER = blo.LowerProblem(lambda t, z: 0.5 * (z - torch.as_tensor(M) @ t - torch.as_tensor(C)).square().sum())
START, Z0 = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
NEWTON: Any = {"solver": blo.Newton(tol=1e-12), "gradient": blo.Implicit(blo.Direct())}


def upper(theta: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (z - torch.as_tensor(D)).square().sum() + 0.25 * theta.pow(4).sum()


def value(theta: Array) -> float:
    return float(0.5 * np.sum((M @ theta + C - D) ** 2) + 0.25 * np.sum(theta**4))


def slope(theta: Array) -> Array:
    found: Array = M.T @ (M @ theta + C - D) + theta**3
    return found


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def momentum(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.8)


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)


def lbfgs(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.5, max_iter=3, history_size=4)


def step_lr(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def plateau(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def two(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.9)
    return lr_scheduler.SequentialLR(optimizer, [*parts], milestones=[3])


def fit(steps: int, optimizer: Any = sgd, **changes: Any) -> blo.FitResult:
    return blo.fit(upper, LOWER, START, Z0, optimizer=optimizer, steps=steps, **{**NEWTON, **changes})


def assert_identical(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_identical(left[key], right[key])
    elif isinstance(left, list | tuple):
        for a, b in zip(left, right, strict=True):
            assert_identical(a, b)
    else:
        assert left == right


def test_the_schedule_is_stepped_after_each_step() -> None:
    theta, rates = START.numpy(), []
    for k in range(7):
        theta = theta - 0.1 * 0.5 ** (k // 2) * slope(theta)
    result = fit(7, scheduler=step_lr, callback=lambda now: rates.append(now.optimizer.param_groups[0]["lr"]))
    np.testing.assert_allclose(result.theta, theta, rtol=0, atol=1e-12)
    assert rates == [0.1 * 0.5 ** ((k + 1) // 2) for k in range(7)]


def test_a_schedule_on_plateaus_gets_the_value_before_the_step() -> None:
    theta, rate, best, rates = START.numpy(), 0.25, np.inf, []
    for _ in range(8):
        before, theta = value(theta), theta - rate * slope(theta)
        rate, best = (rate, before) if before < best * (1 - 1e-4) else (rate / 2, best)
        rates.append(rate)
    assert len(set(rates)) > 2  # the steps are too long at first
    seen: list[float] = []
    result = fit(
        8,
        lambda p: torch.optim.SGD(p, lr=0.25),
        scheduler=plateau,
        callback=lambda now: seen.append(now.optimizer.param_groups[0]["lr"]),
    )
    assert seen == rates
    np.testing.assert_allclose(result.theta, theta, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # SequentialLR of torch 2.7 passes it
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        (adam, lambda o: lr_scheduler.CosineAnnealingLR(o, 9)),
        (momentum, lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9)),
        (momentum, two),
        (lbfgs, step_lr),
        (adam, plateau),
        (adam, lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k)),
        (adam, None),
    ],
    ids=["cosine", "one cycle", "sequential", "lbfgs", "plateau", "lambda", "constant"],
)
def test_a_fit_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(
    optimizer: Any, scheduler: Any, tmp_path: Path
) -> None:
    # An iterative solver that stops early: the warm start shows in each number.
    early: Any = {"solver": blo.ProjectedGradient(0.3, max_steps=3, tol=None), "scheduler": scheduler}
    early |= {"gradient": blo.Implicit(blo.CG(max_iter=1)), "on_failure": "ignore"}
    path = tmp_path / "run.pt"

    def save(now: blo.FitStep) -> None:
        if now.step == 4:
            now.checkpoint(path)

    whole = fit(8, optimizer, callback=save, **early)
    assert os.listdir(tmp_path) == ["run.pt"]
    state = torch.load(path, weights_only=True)
    for _ in range(2):  # a checkpoint may be continued more than once
        rest = fit(4, optimizer, state=state, **early)
        assert torch.equal(rest.values, whole.values[4:])
        assert_identical(rest.state, whole.state)
        assert_identical([rest.theta, rest.z], [whole.theta, whole.z])


def test_a_step_tells_the_new_theta_and_the_hypergradient_at_the_one_before() -> None:
    seen: list[blo.FitStep] = []
    fit(3, scheduler=step_lr, callback=seen.append)
    theta = START.numpy()
    for number, now in enumerate(seen, 1):
        np.testing.assert_allclose(now.value, value(theta), rtol=1e-12)
        np.testing.assert_allclose(now.grad, slope(theta), atol=1e-12)
        np.testing.assert_allclose(now.z, M @ theta + C, atol=1e-12)
        theta = theta - 0.1 * 0.5 ** ((number - 1) // 2) * slope(theta)
        np.testing.assert_allclose(now.theta, theta, atol=1e-12)
        assert now.step == number and now.report.ok and now.state is not None
        assert_identical(now.state["z"], now.z)
        assert isinstance(now.optimizer, torch.optim.SGD) and isinstance(now.scheduler, lr_scheduler.StepLR)


def test_what_a_callback_changes_of_the_optimiser_counts() -> None:
    def halve(now: blo.FitStep) -> None:
        now.optimizer.param_groups[0]["lr"] /= 2

    np.testing.assert_array_equal(fit(6, callback=halve).theta, fit(6, scheduler=_halved).theta)


def _halved(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, 0.5)


def test_a_checkpoint_stays_as_it_was_and_is_refused_later() -> None:
    seen: list[Any] = []
    fit(3, momentum, callback=lambda now: seen.append((now, now.checkpoint())))
    assert_identical(seen[0][1], fit(1, momentum).state)
    with pytest.raises(blo.StructureError, match="step 1 must be called before the next step, but 3 steps"):
        seen[0][0].checkpoint()


def test_a_schedule_may_begin_in_a_fit_that_goes_on() -> None:
    rates: list[float] = []
    fit(
        3,
        state=fit(2).state,
        scheduler=_halved,
        callback=lambda now: rates.append(now.optimizer.param_groups[0]["lr"]),
    )
    assert rates == [0.05, 0.025, 0.0125]


def test_a_callback_takes_one_argument_or_three() -> None:
    seen: list[Any] = []
    for callback in (
        lambda now, note=None: seen.append(now),
        lambda *a: seen.append(a),
        lambda s, t, h: seen.append(s),
    ):
        fit(1, callback=callback)
    assert isinstance(seen[0], blo.FitStep) and seen[2] == 1
    assert len(seen[1]) == 3 and seen[1][0] == 1 and isinstance(seen[1][2], blo.Hypergradient)


def test_progress_is_shown_with_value_norm_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(2, progress=True, callback=lambda now: now.step == 2)
    norm = np.linalg.norm(slope(START.numpy() - 0.1 * slope(START.numpy())))
    shown = capsys.readouterr().err
    assert f"value {float(first.values[1]):.4g}, gradient norm {norm:.2e}, converged" in shown
    assert "2/2" in shown
    few: Any = {"solver": blo.ProjectedGradient(0.3, max_steps=2), "on_failure": "ignore"}
    fit(1, progress=True, state=first.state, **few)
    shown = capsys.readouterr().err
    assert "lower solve unconverged" in shown and "3/3" in shown
    fit(1)
    assert capsys.readouterr().err == ""


def test_progress_without_tqdm_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package tqdm: pip install tqdm"):
        fit(1, progress=True)


def test_a_result_is_read_in_another_process_without_tqdm(tmp_path: Path) -> None:
    result = fit(3, adam, scheduler=step_lr)
    (tmp_path / "result.pkl").write_bytes(pickle.dumps(result))
    torch.save(result, tmp_path / "result.pt")
    code = """
import pickle, sys
sys.modules["tqdm"] = None
import torch, blo
for found in (pickle.load(open("result.pkl", "rb")), torch.load("result.pt", weights_only=False)):
    print(type(found) is blo.FitResult, found.theta.tolist(), found.values.tolist(), found.state["steps"])
    print(found.hypergradient.report)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(blo.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    told = f"True {result.theta.tolist()} {result.values.tolist()} 3\n{result.hypergradient.report}\n"
    assert run.stdout == 2 * told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": lambda o: 3}, "`scheduler` must make a torch.optim.lr_scheduler of an optimiser, but gave int"),
        ({"scheduler": step_lr(sgd([torch.ones(1)]))}, "`scheduler` must make a schedule.*is one already"),
        ({"scheduler": lambda o: step_lr(sgd([torch.ones(1)]))}, "`scheduler`.*but made one of another"),
        ({"optimizer": lambda p: sgd([torch.ones(1)])}, "`optimizer`.*but made one of others"),
        (
            {"callback": lambda step, theta: None},
            r"`callback` must be a function of one argument.*takes \(step, theta\)",
        ),
        ({"callback": 3}, "`callback` must be a function.*of type int"),
        ({"state": "scheduled"}, "`state` holds a StepLR, but there is no `scheduler`"),
        ({"state": "scheduled", "scheduler": _halved}, "must make the StepLR that `state` holds.*ExponentialLR"),
        (
            {"state": "scheduled", "scheduler": step_lr, "optimizer": adam},
            "not of the (Adam|optimiser) that `optimizer`",
        ),
    ],
    ids=[
        "no schedule",
        "a schedule",
        "schedule of another",
        "optimiser of others",
        "two arguments",
        "no function",
        "schedule left out",
        "other schedule",
        "other optimiser",
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    if "state" in changes:
        changes = {**changes, "state": fit(1, scheduler=step_lr).state}
    with pytest.raises(blo.StructureError, match=message):
        fit(1, **changes)


def test_a_state_from_before_there_were_schedules_is_continued() -> None:
    state = {key: value for key, value in fit(2, adam).state.items() if key != "scheduler"}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.equal(fit(2, adam, state=torch.load(file, weights_only=True)).theta, fit(4, adam).theta)
