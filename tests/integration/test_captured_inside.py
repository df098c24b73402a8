"""Objectives that use `torch.func` transforms themselves, under transforms over `argmin`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blo
from blo.errors import StructureError

T = torch.tensor([0.5, -0.7, 1.1], dtype=torch.float64)
W = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)
SOLVER = blo.FISTA(tol=1e-13, max_steps=20_000)
Value = Callable[[Tensor], Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]
grad = torch.func.grad


def grad_in_vmap(value: Value) -> Value:
    return lambda x: torch.vmap(grad(value))(torch.stack([x, 0.9 * x]))


def hessian(value: Value) -> Value:
    return torch.func.jacrev(torch.func.jacrev(value))


def quartic(t: Tensor) -> Tensor:
    """Return the minimiser of `(z - t)^2 + z^4`, by Newton's method."""
    z = t
    for _ in range(50):
        z = z - (2 * (z - t) + 4 * z**3) / (2 + 12 * z**2)
    return z


def one(a: Tensor, b: Tensor) -> Tensor:
    return (b - a) ** 2 + b**4


def slope(derivative: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return the same objective, from the gradient of `|z - a|^2 / 2` or its diagonal."""
    return derivative(z).square().sum() + (z**4).sum()


#: Each is `sum((z - c)^2 + z^4)` for the captured tensor c, or for theta.
OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {
    "vmap over theta": lambda c: lambda t, z: torch.vmap(one)(t, z).sum(),
    "vmap over the captured": lambda c: lambda t, z: torch.vmap(one)(c, z).sum(),
    "vmap over its lanes": lambda c: lambda t, z: torch.vmap(one)(torch.vmap(lambda a: 1.0 * a)(c), z).sum(),
    "vmap in vmap": lambda c: lambda t, z: torch.vmap(torch.vmap(one))(c[:, None], z[:, None]).sum(),
    "captured inside": lambda c: lambda t, z: torch.vmap(lambda e, b: one(e @ c, b))(EYE, z).sum(),
    "grad in theta": lambda c: lambda t, z: slope(lambda z: grad(lambda a: (z - a).square().sum() / 2)(t), z),
    "grad in z": lambda c: lambda t, z: slope(grad(lambda z: (z - c).square().sum() / 2), z),
    "grad in a copy": lambda c: lambda t, z: slope(lambda z: grad(lambda a: (z - a).square().sum() / 2)(c.clone()), z),
    "jacrev": lambda c: lambda t, z: slope(lambda z: torch.func.jacrev(lambda a: (z - a) ** 2 / 2)(t).diagonal(), z),
    "jacfwd": lambda c: lambda t, z: slope(lambda z: torch.func.jacfwd(lambda a: (z - a) ** 2 / 2)(t).diagonal(), z),
}


def value_of(objective: Callable[[Tensor], Objective], strategy: blo.gradients.Strategy) -> Value:
    def value(x: Tensor) -> Tensor:
        return blo.argmin(blo.LowerProblem(objective(x)), x, ZERO, solver=SOLVER, gradient=strategy).sin() @ W

    return value


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # the first use of jacfwd
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("strategy", "transform"),
    [
        *((blo.Implicit(blo.Direct()), transform) for transform in (grad, grad_in_vmap, hessian)),
        *((blo.Unrolled(checkpoint=True), transform) for transform in (grad, grad_in_vmap)),
        (blo.ValueFunction(penalty=1e4, two_sided=True), grad_in_vmap),
    ],
)
def test_an_objective_that_maps_or_differentiates(
    strategy: blo.gradients.Strategy, transform: Callable[[Value], Value], name: str
) -> None:
    found = transform(value_of(OBJECTIVES[name], strategy))(T)
    truth = transform(lambda x: quartic(x).sin() @ W)(T)
    # The central difference of the value function has an error of third order in 1/penalty.
    assert (found - truth).abs().max() <= (1e-6 if isinstance(strategy, blo.ValueFunction) else 1e-8)


@pytest.mark.parametrize("transform", [grad, grad_in_vmap, hessian, torch.func.jacrev])
def test_a_derivative_in_the_captured_tensor_itself_is_refused(transform: Callable[[Value], Value]) -> None:
    def objective(c: Tensor) -> Objective:
        return lambda t, z: slope(lambda z: grad(lambda a: (z - a).square().sum() / 2)(c), z)

    with pytest.raises(StructureError, match=r"Hand over `tensor.clone\(\)`"):
        transform(value_of(objective, blo.Implicit()))(T)


@pytest.mark.parametrize(
    "constraint",
    [
        lambda x: blo.SmoothConstraints(inequalities=lambda z: z - x),
        lambda x: lambda t: blo.SmoothConstraints(inequalities=lambda z: z - t),
        lambda x: blo.sets.Intersection(blo.NonNegative(), blo.SmoothConstraints(inequalities=lambda z: z - x)),
    ],
)
@pytest.mark.parametrize(
    "transform", [grad, grad_in_vmap, hessian, torch.func.jacrev, lambda f: lambda x: torch.vmap(f)(x[None])]
)
def test_constraint_functions_that_capture_are_refused(
    transform: Callable[[Value], Value], constraint: Callable[[Tensor], blo.sets.Set]
) -> None:
    def value(x: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: (z - t - 9).square().sum(), constraint(x.exp()))
        return blo.argmin(lower, x, ZERO).sin() @ W

    with pytest.raises(StructureError, match="functions of `SmoothConstraints` capture"):
        transform(value)(T)
