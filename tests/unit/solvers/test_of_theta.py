"""Step sizes, momentum and optimisers that are functions of theta."""

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
from tests.lower import Counted
from tests.strategies import normal

STEPS = 5
Theta = dict[str, Tensor]
WEIGHTS, TARGET, START = 0.6 * normal(3, 4, 3), normal(5, 2, 3), 0.4 * normal(6, 2, 3)
THETA: Theta = {
    "shift": normal(4, 4),
    "one": torch.tensor(-1.2).double(),
    "each step": 0.2 * normal(7, STEPS) - 1.2,
    "each coordinate": 0.2 * normal(8, 2, 3) - 1.2,
    "momentum": torch.tensor(0.3).double(),
}
RATES: dict[str, Callable[[Theta], Any]] = {
    "one": lambda theta: theta["one"].exp(),
    "each step": lambda theta: theta["each step"].exp(),
    "a list": lambda theta: list(theta["each step"].exp()),
    "each coordinate": lambda theta: theta["each coordinate"].exp(),
}
MODES = {
    "reverse": blo.Unrolled(),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "all the last": blo.Unrolled(last=STEPS),
}


def objective(theta: Theta, z: Tensor) -> Tensor:
    return (z @ WEIGHTS.T + theta["shift"]).cosh().log().sum(-1) + 0.1 * z.square().sum(-1)


def slope(theta: Theta, z: Tensor) -> Tensor:
    return torch.tanh(z @ WEIGHTS.T + theta["shift"]) @ WEIGHTS + 0.2 * z


def momentum(theta: Theta) -> Tensor:
    return theta["momentum"].sigmoid()


def by_hand(theta: Theta, kind: str, prox: Callable[[Tensor, Tensor], Tensor], held: int = 0) -> Tensor:
    """Return the point after all steps, with theta held constant in the first ones."""
    z, velocity = START, torch.zeros_like(START)
    for k in range(STEPS):
        at = {name: leaf.detach() for name, leaf in theta.items()} if k < held else theta
        z = z.detach() if k == held else z
        velocity = velocity.detach() if k == held else velocity
        rate = RATES[kind](at)
        rate = rate[k] if kind in ("each step", "a list") else rate
        velocity = momentum(at) * velocity + slope(at, z)
        z = prox(z - rate * velocity, rate)
    return z


def leaves() -> Theta:
    return {name: leaf.clone().requires_grad_() for name, leaf in THETA.items()}


def distance(z: Tensor) -> Tensor:
    return (z - TARGET).square().sum()


def slopes(value: Tensor, theta: Theta) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(theta.values()), materialize_grads=True))


def solver_of(kind: str) -> blo.ProjectedGradient:
    return blo.ProjectedGradient(RATES[kind], STEPS, tol=None, momentum=momentum)


PLACES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "free": ({}, lambda z, step: z),
    "box": ({"constraint": blo.Box(-0.3, 0.35)}, lambda z, step: z.clamp(-0.3, 0.35)),
    "penalty": ({"penalty": blo.L1(0.3)}, lambda z, step: z.sign() * (z.abs() - 0.3 * step).relu()),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", RATES)
def test_the_derivative_is_autodiff_through_a_loop_by_hand(kind: str, place: str, mode: str) -> None:
    options, prox = PLACES[place]
    lower, theta = blo.LowerProblem(objective, batched=True, **options), leaves()
    if (kind, place) == ("each coordinate", "penalty"):
        with pytest.raises(blo.StructureError, match="a `step` for each coordinate"):
            blo.argmin(lower, theta, START, solver=solver_of(kind), gradient=MODES[mode])
        return
    expected = by_hand(theta, kind, prox)
    truth = slopes(distance(expected), theta)
    found = blo.argmin(lower, theta, START, solver=solver_of(kind), gradient=MODES[mode])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slopes(distance(found), theta), truth, rtol=1e-10, atol=1e-10)
    out = blo.value_and_hypergrad(
        lambda t, z: distance(z), lower, theta, START, solver=solver_of(kind), gradient=MODES[mode]
    )
    torch.testing.assert_close(list(out.grad.values()), truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", RATES)
def test_the_derivative_is_that_of_central_differences(kind: str) -> None:
    lower, names = blo.LowerProblem(objective, blo.Box(-0.3, 0.35), batched=True), list(THETA)
    sizes = [THETA[name].numel() for name in names]

    def theta_of(flat: Tensor) -> Theta:
        parts = zip(names, flat.split(sizes), strict=True)
        return {name: part.reshape(THETA[name].shape) for name, part in parts}

    def final(flat: Tensor, gradient: Any) -> Tensor:
        z = blo.argmin(lower, theta_of(flat), START, solver=solver_of(kind), gradient=gradient)
        return distance(z)

    flat = torch.cat([THETA[name].reshape(-1) for name in names])
    truth = oracles.central_difference(
        lambda t: final(torch.as_tensor(t), blo.Zero()).numpy().reshape(1), flat.numpy(), 1e-4
    )
    for mode in MODES.values():
        found = torch.func.grad(lambda t, mode=mode: final(t, mode))(flat)
        np.testing.assert_allclose(found, truth[0], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", RATES)
def test_truncation_differentiates_the_rates_of_the_last_steps(kind: str, checkpoint: bool) -> None:
    theta = leaves()
    truth = slopes(distance(by_hand(theta, kind, PLACES["box"][1], held=STEPS - 2)), theta)
    lower = blo.LowerProblem(objective, batched=True, **PLACES["box"][0])
    gradient = blo.Unrolled(last=2, checkpoint=checkpoint)
    z = blo.argmin(lower, theta, START, solver=solver_of(kind), gradient=gradient)
    torch.testing.assert_close(slopes(distance(z), theta), truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", RATES)
def test_each_lane_of_vmap_has_its_own_rates_also_where_these_capture_what_is_mapped_over(kind: str, mode: str) -> None:
    lower = blo.LowerProblem(objective, blo.Box(-0.3, 0.35), batched=True)

    def final(theta: Theta, factor: Tensor) -> Tensor:
        def scaled(theta: Theta) -> Any:
            given = RATES[kind](theta)
            return [factor * value for value in given] if isinstance(given, list) else factor * given

        solver = blo.ProjectedGradient(scaled, STEPS, tol=None, momentum=momentum)
        return distance(blo.argmin(lower, theta, START, solver=solver, gradient=MODES[mode]))

    thetas = {name: torch.stack([leaf, 1.1 * leaf]) for name, leaf in THETA.items()}
    factors = torch.tensor([1.0, 0.6], dtype=torch.float64)
    found = torch.vmap(torch.func.grad(final))(thetas, factors)
    for lane in range(2):
        alone = torch.func.grad(final)({name: leaf[lane] for name, leaf in thetas.items()}, factors[lane])
        for name in THETA:
            torch.testing.assert_close(found[name][lane], alone[name], rtol=1e-10, atol=1e-12)


def test_a_strategy_of_the_solution_takes_the_step_for_a_constant() -> None:
    lower = blo.LowerProblem(objective, batched=True)
    found = []
    for solver in (solver_of("one"), blo.ProjectedGradient(float(THETA["one"].exp()), momentum=float(momentum(THETA)))):
        solver = blo.ProjectedGradient(solver.step, 4000, tol=1e-11, momentum=solver.momentum)
        theta = leaves()
        z = blo.argmin(lower, theta, START, solver=solver, gradient=blo.Implicit(blo.Direct()))
        found.append(slopes(distance(z), theta))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    assert found[0][0].abs().max() > 0.01 and not any(part.any() for part in found[0][1:])


def test_a_solve_evaluates_a_setting_once() -> None:
    step: Any = Counted(RATES["one"])
    solver = blo.ProjectedGradient(step, STEPS, tol=None)
    blo.argmin(blo.LowerProblem(objective, batched=True), leaves(), START, solver=solver, gradient=blo.Unrolled())
    assert step.calls == 1


def adam_by_hand(theta: Theta) -> Tensor:
    z, mean, square = START, torch.zeros_like(START), torch.zeros_like(START)
    for k in range(1, STEPS + 1):
        decay = [1 - beta ** torch.tensor(k) for beta in (0.9, 0.999)]  # torchopt's are single precision, too
        g = slope(theta, z)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        z = z - theta["one"].exp() * (mean / decay[0]) / ((square / decay[1]).sqrt() + 1e-8)
    return z


def sgd_by_hand(theta: Theta) -> Tensor:
    z, velocity = START, torch.zeros_like(START)
    for k in range(STEPS):
        g = slope(theta, z)
        velocity = g if k == 0 else momentum(theta) * velocity + g
        z = z - theta["one"].exp() * velocity
    return z


OPTIMIZERS: dict[str, tuple[Callable[[Theta], Any], Callable[[Theta], Tensor]]] = {
    "adam": (lambda theta: torchopt.adam(theta["one"].exp()), adam_by_hand),
    "sgd": (lambda theta: torchopt.sgd(theta["one"].exp(), momentum=momentum(theta)), sgd_by_hand),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_made_of_theta_is_autodiff_through_a_loop_by_hand(name: str, mode: str) -> None:
    make, hand = OPTIMIZERS[name]
    theta = leaves()
    expected = hand(theta)
    truth = slopes(distance(expected), theta)
    found = blo.argmin(
        blo.LowerProblem(objective, batched=True), theta, START, solver=blo.TorchOpt(make, STEPS), gradient=MODES[mode]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slopes(distance(found), theta), truth, rtol=1e-10, atol=1e-10)
    assert truth[1].abs().max() > 0.01


def test_each_solve_is_the_same_function_though_an_optimizer_remembers_its_first_update() -> None:
    def made(theta: Theta) -> Any:
        return torchopt.sgd(theta["one"].exp(), momentum=0.9, dampening=0.5)

    solvers = blo.TorchOpt(made, STEPS), blo.TorchOpt(made(THETA), STEPS)
    lower = blo.LowerProblem(objective, batched=True)
    torch.testing.assert_close(*(blo.argmin(lower, THETA, START, solver=s, gradient=blo.Zero()) for s in solvers))


STEP, MOMENTUM = r"`step\(theta\)` must be positive and finite", r"`momentum\(theta\)` must lie in \[0, 1\)"


@pytest.mark.parametrize("gradient", [blo.Unrolled(), blo.Unrolled(mode="forward"), blo.Implicit()])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        *(({"step": lambda t, s=s: t["one"] * 0 + s}, ValueError, STEP) for s in (0.0, -0.1, torch.inf, torch.nan)),
        ({"step": lambda t: t["each step"].exp() * torch.tensor([1, 1, -1, 1, 1])}, ValueError, STEP),
        *(({"momentum": lambda t, m=m: t["one"] * 0 + m}, ValueError, MOMENTUM) for m in (1.0, -0.1, torch.nan)),
        ({"step": lambda t: t["each step"][1:]}, blo.StructureError, r"`step\(theta\)` must return a scalar, 5 scal"),
        ({"step": lambda t: None}, blo.StructureError, r"`step\(theta\)` must return a scalar"),
        ({"momentum": lambda t: t}, blo.StructureError, r"`momentum\(theta\)` must return a scalar"),
    ],
    ids=lambda value: "" if callable(value) or isinstance(value, dict) else None,
)
def test_values_that_no_step_can_have_are_named(gradient: Any, options: Any, error: Any, match: str) -> None:
    solver = blo.ProjectedGradient(**{"step": 0.1, "max_steps": STEPS, "tol": None, **options})
    with pytest.raises(error, match=match):
        blo.argmin(blo.LowerProblem(objective, batched=True), leaves(), START, solver=solver, gradient=gradient)


def test_a_vector_that_may_count_steps_or_coordinates_is_refused_and_a_list_or_a_tree_tells() -> None:
    theta, z0 = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.ones(3).double()
    lower = blo.LowerProblem(lambda t, z: 0.5 * z.square().sum())

    def solved(step: Any, z0: Any = z0, lower: Any = lower) -> Any:
        solver = blo.ProjectedGradient(step, max_steps=3, tol=None)
        return blo.argmin(lower, theta, z0, solver=solver, gradient=blo.Zero())

    with pytest.raises(blo.StructureError, match="may mean one value per step or one per coordinate"):
        solved(lambda t: t)
    torch.testing.assert_close(solved(list), ((1 - theta).prod() * z0), rtol=1e-14, atol=0.0)
    inside = blo.LowerProblem(lambda t, z: 0.5 * z["z"].square().sum())
    found = solved(lambda t: {"z": t}, {"z": z0}, inside)["z"]
    torch.testing.assert_close(found, (1 - theta) ** 3, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("constraint", [blo.L2Ball(1.0), blo.Simplex(1.0)], ids=["ball", "simplex"])
def test_a_step_for_each_coordinate_is_refused_where_a_projection_couples_them(constraint: Any) -> None:
    lower = blo.LowerProblem(objective, constraint, batched=True)
    with pytest.raises(blo.StructureError, match="a `step` for each coordinate"):
        blo.argmin(lower, leaves(), START, solver=solver_of("each coordinate"), gradient=blo.Unrolled())


def test_an_optimizer_of_theta_is_refused_where_it_is_none_or_cannot_be_mapped_over() -> None:
    lower: Any = blo.LowerProblem(objective)

    def solved(optimizer: Any, theta: Theta, gradient: Any) -> Tensor:
        solver = blo.TorchOpt(optimizer, STEPS)
        z: Tensor = blo.argmin(lower, theta, START[0], solver=solver, gradient=gradient, on_failure="ignore")
        return z

    with pytest.raises(blo.StructureError, match="be a function of theta that returns one, but is int"):
        solved(lambda theta: 3, leaves(), blo.Unrolled())
    thetas = {name: torch.stack([leaf, 1.1 * leaf]) for name, leaf in THETA.items()}
    with pytest.raises(blo.StructureError, match="must return a tensor under `vmap`, but returned"):
        torch.vmap(lambda t: solved(lambda t: torchopt.adam(0.1), t, blo.Implicit()))(thetas)
