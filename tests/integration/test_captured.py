"""Transforms act on what an objective or a set captures, not on theta alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import blo

SOLVER = blo.ProjectedGradient(tol=1e-13, max_steps=20_000)
Task = Callable[[Tensor, Tensor, Tensor], Tensor]


def data(tasks: int = 5, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, rows, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(tasks, rows, generator=generator, dtype=torch.float64)


def ridge(log_weight: Tensor, x: Tensor, y: Tensor, constraint: blo.Box | blo.Free | None = None) -> Tensor:
    """Ridge regression as an argmin whose objective captures the data."""
    lower = blo.LowerProblem(
        lambda t, z: ((x @ z - y) ** 2).mean() + t.exp() * (z**2).sum() / 2, constraint or blo.Free()
    )
    start = torch.zeros(3, dtype=torch.float64)
    return blo.argmin(lower, log_weight, start, solver=SOLVER, gradient=blo.Implicit(blo.Direct()))


def closed_form(log_weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    normal = 2 * x.mT @ x / len(y) + log_weight.exp() * torch.eye(3, dtype=torch.float64)
    return torch.linalg.solve(normal, 2 * x.mT @ y / len(y))


def loss(fit: Task) -> Task:
    return lambda t, x, y: fit(t, x, y).pow(3).sum()


WEIGHT = torch.tensor(0.3, dtype=torch.float64)


def test_vmap_over_captured_data_solves_every_task() -> None:
    x, y = data()
    found = torch.vmap(lambda x, y: ridge(WEIGHT, x, y))(x, y)
    truth = torch.stack([closed_form(WEIGHT, a, b) for a, b in zip(x, y, strict=True)])
    assert (found - truth).abs().max() <= 1e-12


def test_gradient_of_a_sum_over_tasks() -> None:
    x, y = data()

    def total(fit: Task) -> Callable[[Tensor], Tensor]:
        return lambda t: torch.vmap(lambda x, y: loss(fit)(t, x, y))(x, y).sum()

    found, truth = total(ridge), total(closed_form)
    assert (torch.func.grad(found)(WEIGHT) - torch.func.grad(truth)(WEIGHT)).abs() <= 1e-12
    second = torch.func.jacrev(torch.func.grad(found))(WEIGHT) - torch.func.jacrev(torch.func.grad(truth))(WEIGHT)
    assert second.abs() <= 1e-11


def test_gradient_in_theta_for_every_task() -> None:
    x, y = data()
    found, truth = (
        torch.vmap(lambda x, y, fit=fit: torch.func.grad(loss(fit))(WEIGHT, x, y))(x, y) for fit in (ridge, closed_form)
    )
    assert (found - truth).abs().max() <= 1e-12


def test_gradient_in_the_captured_data_themselves() -> None:
    x, y = data()
    found, truth = (
        torch.vmap(torch.func.grad(lambda x, y, fit=fit: loss(fit)(WEIGHT, x, y)))(x, y) for fit in (ridge, closed_form)
    )
    assert (found - truth).abs().max() <= 1e-12


def test_vmap_over_the_bounds_of_a_captured_box() -> None:
    x, y = data()
    radius = torch.linspace(0.05, 0.5, len(x), dtype=torch.float64)
    found = torch.vmap(lambda x, y, r: ridge(WEIGHT, x, y, blo.Box(-r, r)))(x, y, radius)
    for index, r in enumerate(radius.tolist()):
        with torch.no_grad():
            alone = ridge(WEIGHT, x[index], y[index], blo.Box(-r, r))
        assert (found[index] - alone).abs().max() <= 1e-12
        assert found[index].abs().max() <= r
