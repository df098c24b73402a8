"""Objectives that return something beside their loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from tests.strategies import normal

A, THETA, START = normal(1, 4, 3), normal(2, 4), normal(3, 3)
FIXED = blo.ProjectedGradient(0.05, 4, tol=None)


def loss(theta: Tensor, z: Tensor) -> Tensor:
    return (A @ z - theta).square().sum() + z.square().square().sum()


def both(theta: Tensor, z: Tensor, *batch: Tensor) -> tuple[Tensor, dict[str, Any]]:
    value = loss(theta, z) * (batch[0] if batch else 1.0)
    return value, {"twice": 2 * value, "name": "fit", "nothing": None, "parts": [z * z]}


def upper(theta: Tensor, z: Tensor) -> tuple[Tensor, Any]:
    value = (z - 1).square().sum() * theta.square().sum()
    return value, {"z": 3 * z, "kind": "validation"}


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": blo.Implicit(blo.Direct())},
        {"solver": FIXED, "gradient": blo.Unrolled()},
        {"solver": FIXED, "gradient": blo.Unrolled(mode="forward")},
        {"solver": FIXED, "gradient": blo.ValueFunction(1e-3)},
    ],
    ids=["implicit", "unrolled", "forward", "value function"],
)
def test_what_comes_with_a_loss_changes_nothing(options: Any) -> None:
    plain = blo.value_and_hypergrad(
        lambda t, z: upper(t, z)[0], blo.LowerProblem(loss), THETA, START, on_failure="ignore", **options
    )
    lower = blo.LowerProblem(both, has_aux=True)
    found = blo.value_and_hypergrad(upper, lower, THETA, START, has_aux=True, on_failure="ignore", **options)
    assert torch.equal(found.grad, plain.grad) and torch.equal(found.value, plain.value)
    assert found.aux["kind"] == "validation" and not found.aux["z"].requires_grad
    assert torch.equal(found.aux["z"], 3 * found.z) and plain.aux is None


def test_it_goes_together_with_batches_linearisation_and_transforms() -> None:
    weights = [1.0, 0.5, 2.0, 1.5]
    z = START
    for weight in weights:
        (slope,) = torch.autograd.grad(weight * loss(THETA, at := z.clone().requires_grad_()), at)
        z = z - 0.05 * slope
    lower = blo.LowerProblem(both, batches=weights, has_aux=True)
    torch.testing.assert_close(blo.argmin(lower, THETA, START, solver=FIXED, gradient=blo.Zero()), z)

    solver, gradient = blo.OneStep(0.05), blo.HessianFree(20.0)

    def final(theta: Tensor, lower: blo.LowerProblem) -> Tensor:
        found: Tensor = blo.argmin(lower.linearize(START, 20.0), theta, START, solver=solver, gradient=gradient)
        return found

    thetas = torch.stack([THETA, 2 * THETA])
    found, truth = (
        torch.vmap(torch.func.jacrev(lambda t, lower=lower: final(t, lower)))(thetas)
        for lower in (blo.LowerProblem(both, has_aux=True), blo.LowerProblem(loss))
    )
    assert torch.equal(found, truth) and truth.any()


@pytest.mark.parametrize(
    "found", [loss, lambda t, z: (loss(t, z), 1, 2), lambda t, z: [loss(t, z), 1]], ids=["one", "three", "list"]
)
def test_anything_but_a_pair_is_refused(found: Any) -> None:
    with pytest.raises(blo.StructureError, match=r"`objective` must return the pair \(loss, aux\)"):
        blo.argmin(blo.LowerProblem(found, has_aux=True), THETA.clone().requires_grad_(), START)
    with pytest.raises(blo.StructureError, match=r"`upper` must return the pair \(loss, aux\)"):
        blo.value_and_hypergrad(found, blo.LowerProblem(loss), THETA, START, has_aux=True)


def test_a_pair_that_was_not_announced_is_named() -> None:
    with pytest.raises(blo.StructureError, match="pass has_aux=True"):
        blo.value_and_hypergrad(upper, blo.LowerProblem(loss), THETA, START)


def test_the_check_tests_the_scale_of_an_objective_with_aux_too() -> None:
    def value(theta: Tensor, z: Tensor) -> Tensor:
        return upper(theta, z)[0]

    found = [
        blo.check_hypergrad(value, lower, THETA, START).consistency
        for lower in (blo.LowerProblem(both, has_aux=True), blo.LowerProblem(loss))
    ]
    assert found[0] == found[1] and len(found[0]) > 1
