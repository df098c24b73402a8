"""An objective that is not a function is reported as that, whatever solves it and however much it wavers."""

from __future__ import annotations

import itertools
import random
import warnings
from random import gauss
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from tests.strategies import normal

SOLVERS: dict[str, blo.solvers.Solver | None] = {
    "default": None,
    "Newton": blo.Newton(),
    "FISTA": blo.FISTA(),
    "projected gradient": blo.ProjectedGradient(),
    "one step": blo.OneStep(0.1),
    "fixed number of steps": blo.ProjectedGradient(0.1, 20, tol=None),
}


def objective(kind: str, dtype: torch.dtype, size: float) -> Any:
    rows, aims = normal(0, 40, 5).to(dtype), normal(1, 40).to(dtype)
    numpy, own = np.random.default_rng(0), torch.Generator().manual_seed(0)

    def loss(theta: Tensor, z: Tensor) -> Tensor:
        ridge = theta.exp() @ z.square()
        if kind == "minibatch":
            batch = torch.randint(0, 40, (10,))
            return (rows[batch] @ z - aims[batch]).square().mean() + ridge
        noise = torch.ones(40, dtype=dtype)
        if kind == "sometimes" and torch.rand(()) < 0.3:
            noise = noise + size * torch.randn(40, dtype=dtype)
        if kind == "numpy":
            noise = noise + size * torch.as_tensor(numpy.normal(size=40)).to(dtype)
        if kind == "own generator":
            noise = noise + size * torch.randn(40, dtype=dtype, generator=own)
        return (noise * (rows @ z - aims).square()).mean() + ridge

    return loss


def reported(kind: str, dtype: torch.dtype, size: float, solver: blo.solvers.Solver | None) -> tuple[list[str], bool]:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = blo.value_and_hypergrad(
            lambda theta, z: z.square().sum(),
            blo.LowerProblem(objective(kind, dtype, size)),
            torch.full((5,), -2.0, dtype=dtype),
            torch.zeros(5, dtype=dtype),
            solver=solver,
        )
    return [str(warning.message) for warning in caught], out.report.ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["minibatch", "sometimes"])
def test_draws_from_the_global_generator_are_named(kind: str, name: str, dtype: torch.dtype) -> None:
    messages, ok = reported(kind, dtype, 1.0, SOLVERS[name])
    assert not ok
    # What happens in three of ten evaluations need not happen in the two that are compared.
    assert kind == "sometimes" or any("two evaluations of its gradient at one point differ" in m for m in messages)
    assert messages


@pytest.mark.parametrize("name", ["default", "Newton", "FISTA", "projected gradient"])
@pytest.mark.parametrize(("kind", "size"), [("numpy", 1.0), ("own generator", 1.0), ("own generator", 1e-6)])
def test_so_is_noise_of_any_other_source(kind: str, size: float, name: str) -> None:
    messages, ok = reported(kind, torch.float64, size, SOLVERS[name])
    assert not ok and any("two evaluations of its gradient at one point differ" in m for m in messages)


def vanishing(kind: str) -> Any:
    """Return an objective whose noise vanishes at its solution, which is 1 where theta is 1, and bends it elsewhere."""
    numpy, own, python = np.random.default_rng(0), torch.Generator().manual_seed(0), random.Random(0)
    batches = itertools.cycle([0.5, 1.0, 1.7])
    draws: dict[str, Any] = {
        "numpy": lambda: numpy.random(),
        "numpy, global": lambda: np.random.rand(),
        "python": lambda: python.random(),
        "python, global": lambda: random.random(),
        "python, imported": lambda: gauss(3.0, 1.0),
        "own generator": lambda: torch.rand((), generator=own),
        "iterator": lambda: next(batches),
    }
    draw = draws[kind]
    return lambda theta, z: ((z - theta).square() + draw() * (z - 1.0).square()).sum()


def test_noise_in_the_residuals_of_least_squares_is_seen() -> None:
    numpy, theta = np.random.default_rng(0), torch.ones(3, dtype=torch.float64)
    lower = blo.LowerProblem.least_squares(lambda t, z: torch.cat([z - t, numpy.random() * (z - 1.0)]))
    with pytest.warns(blo.ConvergenceWarning, match="two evaluations of its gradient at one point differ"):
        blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, 0 * theta)


@pytest.mark.parametrize("name", ["default", "Newton", "FISTA", "projected gradient"])
@pytest.mark.parametrize(
    "kind",
    ["numpy", "numpy, global", "python", "python, global", "python, imported", "own generator", "iterator"],
)
def test_noise_that_vanishes_at_the_solution_is_seen_at_the_start(kind: str, name: str) -> None:
    theta = torch.ones(3, dtype=torch.float64)
    with pytest.warns(blo.ConvergenceWarning, match="two evaluations of its gradient at one point differ"):
        out = blo.value_and_hypergrad(
            lambda t, z: z.sum(), blo.LowerProblem(vanishing(kind)), theta, 0 * theta, solver=SOLVERS[name]
        )
    assert not out.report.ok


def test_a_generator_that_gives_the_same_numbers_each_time_is_no_noise() -> None:
    def seeded(theta: Tensor, z: Tensor) -> Tensor:
        weights = torch.as_tensor(np.random.default_rng(0).random(3))
        return (weights * (z - theta).square()).sum()

    theta = torch.ones(3, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), blo.LowerProblem(seeded), theta, 0 * theta)
    torch.testing.assert_close(out.grad, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_random_numbers_that_are_the_same_each_time_are_no_noise() -> None:
    def seeded(theta: Tensor, z: Tensor) -> Tensor:
        torch.manual_seed(3)
        return (torch.randn(5, dtype=z.dtype) - z).square().sum() + theta.exp() @ z.square()

    theta = torch.zeros(5, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), blo.LowerProblem(seeded), theta, theta)
    torch.manual_seed(3)
    torch.testing.assert_close(out.grad, -torch.randn(5, dtype=torch.float64) / 4, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gradient", [blo.Unrolled(), blo.Zero()], ids=str)
def test_the_derivative_of_steps_that_sample_is_that_of_the_steps(gradient: blo.gradients.Strategy) -> None:
    theta = torch.full((5,), -2.0, dtype=torch.float64)
    lower, solver = blo.LowerProblem(objective("minibatch", theta.dtype, 1.0)), blo.ProjectedGradient(0.1, 5, None)
    # A warning would be an error.
    blo.value_and_hypergrad(
        lambda t, z: z.sum() + 0 * t.sum(), lower, theta, 0 * theta, solver=solver, gradient=gradient
    )


def test_lanes_are_named_one_by_one() -> None:
    own = torch.Generator().manual_seed(0)

    def loss(theta: Tensor, z: Tensor) -> Tensor:
        noise = torch.tensor([0.0, 1.0, 0.0]) * torch.randn(3, generator=own)
        return ((1 + 0.3 * noise.unsqueeze(-1)) * (z - theta)).square().sum(-1) + noise * z.sum(-1)

    with pytest.warns(blo.ConvergenceWarning, match="differ in 1 of 3 problems"):
        out = blo.value_and_hypergrad(
            lambda t, z: z.sum(), blo.LowerProblem(loss, batched=True), torch.ones(3, 2), torch.zeros(3, 2)
        )
    assert out.report.lower_status is blo.Status.RANDOM
    torch.testing.assert_close(out.z[[0, 2]], torch.ones(2, 2), rtol=0, atol=1e-5)
