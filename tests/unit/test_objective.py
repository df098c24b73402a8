"""Objectives with a minibatch for each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchopt
from torch import Tensor

import blo
from tests import oracles
from tests.strategies import normal

STEPS = 5
DATA, START, TARGET = normal(1, 12, 4, 3), 0.3 * normal(2, 3), normal(3, 3)
THETA = normal(4, 4)


def objective(theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
    return (rows @ z + theta).cosh().log().mean(0).sum() + 0.1 * z.square().sum()


def slope(theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("bij,bi->j", rows, torch.tanh(rows @ z + theta)) / len(rows) + 0.2 * z


def drawn(step: int) -> Tensor:
    return DATA[torch.randperm(12, generator=torch.Generator().manual_seed(step))[:4]]


BATCHES: dict[str, tuple[Any, Callable[[int], Tensor]]] = {
    "a function": (drawn, drawn),
    "a list that begins again": ([DATA[:4], DATA[4:6], DATA[6:]], lambda k: [DATA[:4], DATA[4:6], DATA[6:]][k % 3]),
    "a tensor": (DATA.unflatten(0, (6, 2)), lambda k: DATA[2 * k : 2 * k + 2]),
}


def momentum_by_hand(theta: Callable[[int], Tensor], batch: Callable[[int], Tensor], cut: int) -> Tensor:
    z, velocity = START, torch.zeros(3).double()
    for k in range(STEPS):
        z, velocity = (z.detach(), velocity.detach()) if k == cut else (z, velocity)
        velocity = 0.6 * velocity + slope(theta(k), z, batch(k))
        z = (z - 0.2 * velocity).clamp(-0.5, 0.5)
    return z


def adam_by_hand(theta: Callable[[int], Tensor], batch: Callable[[int], Tensor], cut: int) -> Tensor:
    z, mean, square = START, torch.zeros(3).double(), torch.zeros(3).double()
    for k in range(STEPS):
        z, mean, square = (z.detach(), mean.detach(), square.detach()) if k == cut else (z, mean, square)
        decay = [1 - beta ** torch.tensor(k + 1) for beta in (0.9, 0.999)]  # torchopt's are single precision, too
        g = slope(theta(k), z, batch(k))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        z = (z - 0.1 * (mean / decay[0]) / ((square / decay[1]).sqrt() + 1e-8)).clamp(-0.5, 0.5)
    return z


SOLVERS: dict[str, tuple[blo.solvers.Solver, Callable[..., Tensor]]] = {
    "momentum": (blo.ProjectedGradient(0.2, STEPS, tol=None, momentum=0.6), momentum_by_hand),
    "adam": (blo.TorchOpt(torchopt.adam(0.1), STEPS), adam_by_hand),
}
MODES = {
    "reverse": blo.Unrolled(),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "the last": blo.Unrolled(last=2),
    "the last by checkpoints": blo.Unrolled(last=2, checkpoint=True),
}


def lower(batches: Any) -> blo.LowerProblem:
    return blo.LowerProblem(objective, blo.Box(-0.5, 0.5), batches=batches)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", BATCHES)
def test_the_derivative_is_autodiff_through_a_loop_by_hand(kind: str, name: str, mode: str) -> None:
    batches, batch = BATCHES[kind]
    solver, hand = SOLVERS[name]
    theta, cut = THETA.clone().requires_grad_(), STEPS - 2 if "last" in mode else 0
    expected = hand(lambda k: theta if k >= cut else theta.detach(), batch, cut)
    truth = torch.autograd.grad((expected - TARGET).square().sum(), theta)
    found = blo.argmin(lower(batches), theta, START, solver=solver, gradient=MODES[mode], on_failure="raise")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad((found - TARGET).square().sum(), theta), truth, rtol=1e-10, atol=1e-10
    )
    assert truth[0].abs().max() > 1e-2


@pytest.mark.parametrize("mode", ["reverse", "checkpoint", "forward"])
def test_the_derivative_is_that_of_central_differences_also_where_data_are_mapped_over(mode: str) -> None:
    def final(theta: Tensor, data: Tensor, gradient: Any = MODES[mode], kind: int = 0) -> Tensor:
        batches: Any = [lambda k: data[2 * k : 2 * k + 2], list(data.unflatten(0, (6, 2)))][kind]
        z = blo.argmin(lower(batches), theta, START, solver=SOLVERS["momentum"][0], gradient=gradient)
        return (z - TARGET).square().sum()

    datasets = torch.stack([DATA, DATA.flip(0)])
    truth = [
        oracles.central_difference(
            lambda t, data=data: final(torch.as_tensor(t), data, blo.Zero()).numpy().reshape(1), THETA.numpy(), 1e-4
        )[0]
        for data in datasets
    ]
    for kind in range(2):
        found = torch.vmap(torch.func.grad(lambda t, data, kind=kind: final(t, data, kind=kind)), (None, 0))
        np.testing.assert_allclose(found(THETA, datasets), np.stack(truth), rtol=1e-7, atol=1e-8)


def test_problems_of_a_batch_share_the_minibatch() -> None:
    both = blo.LowerProblem(
        lambda t, z, rows: torch.vmap(objective, (None, 0, None))(t, z, rows), batched=True, batches=drawn
    )
    starts, solver = torch.stack([START, 2 * START]), SOLVERS["momentum"][0]
    theta = THETA.clone().requires_grad_()
    together = blo.argmin(both, theta, starts, solver=solver, gradient=blo.Unrolled())
    for lane in range(2):
        alone = blo.argmin(
            blo.LowerProblem(objective, batches=drawn), theta, starts[lane], solver=solver, gradient=blo.Unrolled()
        )
        torch.testing.assert_close(together[lane], alone, rtol=1e-12, atol=1e-12)


def test_a_solve_sees_each_batch_once_and_in_order() -> None:
    seen: list[int] = []

    def batches(step: int) -> Tensor:
        seen.append(step)
        return drawn(step)

    for solver in (*(solver for solver, _ in SOLVERS.values()), sgd()):
        seen.clear()
        blo.argmin(lower(batches), THETA, START, solver=solver, gradient=blo.Zero(), on_failure="ignore")
        assert seen == list(range(STEPS))


def sgd() -> blo.TorchOptim:
    return blo.TorchOptim(lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.6), STEPS)


def test_an_optimizer_of_torch_takes_the_same_steps() -> None:
    found = blo.argmin(lower(drawn), THETA, START, solver=sgd(), gradient=blo.Zero())
    torch.testing.assert_close(found, momentum_by_hand(lambda k: THETA, drawn, 0), rtol=1e-12, atol=1e-12)


def test_batches_that_differ_when_steps_are_made_again_are_reported() -> None:
    stream = iter(range(100))
    theta = THETA.clone().requires_grad_()
    with pytest.raises(blo.ConvergenceError):
        z = blo.argmin(
            lower(lambda step: drawn(next(stream))),
            theta,
            START,
            solver=SOLVERS["momentum"][0],
            gradient=blo.Unrolled(checkpoint=True),
            on_failure="raise",
        )
        z.sum().backward()


FIXED = blo.ProjectedGradient(0.1, STEPS, tol=None)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gradient": blo.Unrolled()}, "`solver` must make a fixed number of steps of given sizes, but is left out"),
        *(
            ({"solver": solver, "gradient": blo.Unrolled()}, f"but is {type(solver).__name__}")
            for solver in (blo.FISTA(0.1, tol=None), blo.LBFGS(), blo.Newton(), blo.OneStep(0.1))
        ),
        ({"solver": blo.ProjectedGradient(0.1), "gradient": blo.Unrolled()}, "ProjectedGradient with a tolerance"),
        ({"solver": blo.ProjectedGradient(tol=None), "gradient": blo.Unrolled()}, "ProjectedGradient without a step"),
        *(
            ({"solver": FIXED, "gradient": gradient}, f"`gradient` must differentiate the steps, but is {name}")
            for gradient, name in ((None, "Implicit"), (blo.HessianFree(1.0), "HessianFree"))
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_solvers_and_strategies_that_need_one_objective_are_refused(options: Any, match: str) -> None:
    with pytest.raises(blo.StructureError, match=match):
        blo.argmin(lower(drawn), THETA, START, **options)
    with pytest.raises(blo.StructureError, match=match):
        blo.value_and_hypergrad(lambda t, z: z.sum() + t.sum(), lower(drawn), THETA, START, **options)


def test_what_needs_the_value_of_one_objective_is_refused() -> None:
    with pytest.raises(blo.StructureError, match="has a different objective in each step"):
        lower(drawn).objective(THETA, START)
    with pytest.raises(blo.StructureError, match="`batches` needs a plain"):
        lower(drawn).linearize(START, 1.0)
    with pytest.raises(blo.StructureError, match="has a different objective in each step"):
        blo.check_hypergrad(
            lambda t, z: z.sum() + t.sum(), lower(drawn), THETA, START, solver=FIXED, gradient=blo.Unrolled()
        )


@pytest.mark.parametrize("batches", [[], 3, iter([1]), {"x": 1}], ids=["empty", "number", "iterator", "dict"])
def test_what_gives_no_batch_of_a_step_is_refused(batches: Any) -> None:
    with pytest.raises(blo.StructureError, match="`batches` must be a function of the number of a step"):
        lower(batches)


def test_an_objective_that_takes_no_batch_is_refused() -> None:
    with pytest.raises(blo.StructureError, match="a function of theta, z and a batch"):
        blo.LowerProblem(lambda theta, z: z.sum(), batches=drawn)
