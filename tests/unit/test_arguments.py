"""What is given as a function is looked at before it is called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blo
from blo._arguments import require_function
from blo.errors import StructureError
from blo.stochastic import SOBA

THETA, Z0 = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)


def distance(theta: Tensor, z: Tensor) -> Tensor:
    return (z - theta).square().sum()


LOWER = blo.LowerProblem(distance)


def swapped(z: Tensor, theta: Tensor) -> Tensor:
    return (z - 2 * theta).square().sum()


class Called:
    def __call__(self, z: Tensor, theta: Tensor) -> Tensor:
        return swapped(z, theta)

    def method(self, z0: Tensor, th: Tensor) -> Tensor:
        return swapped(z0, th)


class Scaled(nn.Module):
    """A module that is a function of theta and z."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(3 * torch.ones(2, dtype=torch.float64))

    def forward(self, theta: Tensor, z: Tensor) -> Tensor:
        return distance(self.scale * theta, z)


def _upper(function: Any) -> None:
    blo.value_and_hypergrad(function, LOWER, THETA, Z0)


def _fit(function: Any) -> None:
    blo.fit(function, LOWER, THETA, Z0, optimizer=torch.optim.SGD, steps=1)


PLACES: dict[str, Callable[[Any], Any]] = {
    "objective": blo.LowerProblem,
    "function": blo.LowerProblem.fixed_point,
    "upper": _upper,
    "upper of a fit": _fit,
    "upper of a check": lambda function: blo.check_hypergrad(function, LOWER, THETA, Z0),
    "function of External": blo.External,
}


@pytest.mark.parametrize("given", [swapped, Called(), Called().method, functools.partial(swapped)])
@pytest.mark.parametrize("place", PLACES)
def test_parameters_that_say_z_comes_first_are_refused(place: str, given: Any) -> None:
    with pytest.raises(StructureError, match=rf"`{place.split()[0]}`.*in this order.*\(z.*th.*Put `th(eta)?` first"):
        PLACES[place](given)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("given", "found"),
    [
        (nn.Linear(2, 2), r"Linear\.forward takes \(input.*functionalize"),
        (nn.Linear, "the class Linear"),
        (None, "of type NoneType"),
        (lambda z: z, r"takes \(z\)"),
        (lambda theta, z, batch: z, r"takes \(theta, z, batch\)"),
    ],
)
def test_what_is_no_function_of_both_variables_is_refused(place: str, given: Any, found: str) -> None:
    with pytest.raises(StructureError, match=rf"`{place.split()[0]}` must be a function of theta and z0?, .*{found}"):
        PLACES[place](given)


@pytest.mark.parametrize(
    ("given", "found"),
    [(lambda z, theta, batch: z, "Put `theta` first"), (lambda theta, z: z, "theta, z and a batch")],
)
def test_stochastic_objectives_are_looked_at_as_well(given: Any, found: str) -> None:
    algorithm = SOBA(lower_step=0.1, upper_step=0.1)
    state = algorithm.init(THETA, Z0)
    good = lambda theta, z, batch: distance(theta, z)  # noqa: E731
    for pair in ((given, good), (good, given)):
        with pytest.raises(StructureError, match=found):
            algorithm.step(state, *pair)


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (Scaled(), 3.0),
        (nn.MSELoss(), 1.0),
        (torch.nn.functional.mse_loss, 1.0),
        (lambda *both: distance(*both), 1.0),
        (lambda a, b, *, scale=2.0: distance(scale * a, b), 2.0),
        (lambda a, b, scale=2.0: distance(scale * a, b), 2.0),
        (lambda z, b: distance(z, b), 1.0),
        (functools.partial(lambda scale, theta, z: distance(scale * theta, z), 2.0), 2.0),
        (functools.wraps(swapped)(lambda *both: swapped(both[1], both[0])), 2.0),  # what it wraps is not asked
    ],
)
def test_any_function_of_both_passes_in_silence(objective: Any, slope: float) -> None:
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), blo.LowerProblem(objective), THETA, Z0)
    assert torch.allclose(out.grad, slope * torch.ones_like(THETA), rtol=0, atol=1e-9)


def test_callables_that_do_not_say_pass() -> None:
    require_function(torch.dot, "upper", "theta", "z")


def test_no_constraint_is_not_none() -> None:
    with pytest.raises(StructureError, match=r"`constraint` must be.*NoneType.*leave it out"):
        blo.LowerProblem(distance, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("theta", "z0"), [(THETA.to("meta"), Z0), (THETA, Z0.to("meta"))])
def test_tensors_without_numbers_are_refused_where_one_is_looked_at(theta: Tensor, z0: Tensor) -> None:
    theta = theta.clone().requires_grad_()
    calls: list[Callable[[], Any]] = [
        lambda: blo.argmin(LOWER, theta, z0),
        lambda: blo.value_and_hypergrad(distance, LOWER, theta, z0),
        lambda: blo.fit(distance, LOWER, theta, z0, optimizer=torch.optim.SGD, steps=1),
        lambda: blo.argmin(LOWER, theta, z0, solver=blo.ProjectedGradient(0.5, max_steps=2, tol=None)),
    ]
    for call in calls:
        with pytest.raises(StructureError, match=r"theta and z0 must hold numbers.*meta"):
            call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("value_and_hypergrad", lambda theta: blo.value_and_hypergrad(distance, LOWER, theta, Z0).grad),
        ("fit", lambda t: blo.fit(distance, LOWER, t, Z0, optimizer=lambda p: torch.optim.SGD(p, 0.1), steps=1).theta),
        ("check_hypergrad", lambda theta: blo.check_hypergrad(distance, LOWER, theta, Z0)),
    ],
)
def test_functions_that_return_constants_are_refused_inside_transforms(
    name: str, call: Callable[[Tensor], Tensor]
) -> None:
    for transformed in (torch.vmap(call), torch.func.jacrev(call)):
        with pytest.raises(StructureError, match=f"`{name}` returns constants, so it cannot run inside torch.func"):
            transformed(torch.stack([THETA, THETA]))


def test_what_to_write_instead_of_a_mapped_hypergradient_gives_it() -> None:
    lower = blo.LowerProblem(lambda t, z: (z - t * t).square().sum())
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)

    def value(t: Tensor) -> Tensor:
        return blo.argmin(lower, t, Z0).sum() + t.sum()

    grads, values = torch.vmap(torch.func.grad_and_value(value))(rows)
    torch.testing.assert_close(grads, 2 * rows + 1, rtol=1e-10, atol=0)
    torch.testing.assert_close(values, (rows.square() + rows).sum(-1), rtol=1e-10, atol=0)
