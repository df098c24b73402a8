"""Equilibria `z = tanh(W(theta) z + B(theta) + c)` with W not symmetric: against dense implicit Jacobians in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import EXACT, as_tensor, assert_near
from tests.oracles import Array
from tests.strategies import SEEDS, normal

few = settings(deadline=None, max_examples=3)
SOLVER = blo.FixedPoint(tol=1e-13)


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """`W(theta) = W0 + sum_i theta_i W_i`, a contraction for |theta| < 1; upper `sum(sin z) + 1/2 |theta|^2`."""

    W0: Array
    W: Array
    B: Array
    c: Array
    theta: Array

    @classmethod
    def draw(cls, n: int, m: int, seed: int, lanes: tuple[int, ...] = ()) -> Equilibrium:
        rng = np.random.default_rng(seed)
        parts = rng.normal(size=(m + 1, n, n))
        parts /= np.linalg.norm(parts, 2, axis=(1, 2), keepdims=True)
        theta = rng.normal(size=m)
        theta *= 0.5 / np.linalg.norm(theta, 1)
        return cls(0.4 * parts[0], parts[1:], rng.normal(size=(n, m)), rng.normal(size=(*lanes, n)), theta)

    def function(self, theta: Tensor, z: Tensor) -> Tensor:
        weight = as_tensor(self.W0) + torch.einsum("i,ijk->jk", theta, as_tensor(self.W))
        return torch.tanh(z @ weight.T + as_tensor(self.B) @ theta + as_tensor(self.c))

    def lower(self) -> blo.LowerProblem:
        return blo.LowerProblem.fixed_point(self.function, batched=self.c.ndim > 1)

    def argmin(self, theta: Tensor, gradient: blo.gradients.Strategy = EXACT) -> Tensor:
        z: Tensor = blo.argmin(self.lower(), theta, as_tensor(0 * self.c), solver=SOLVER, gradient=gradient)
        return z

    def value(self, theta: Tensor) -> Tensor:
        return self.upper(theta, self.argmin(theta))

    @staticmethod
    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return z.sin().sum() + 0.5 * theta.square().sum()

    # The truth.

    def weight(self, theta: Array) -> Array:
        return self.W0 + np.einsum("i,ijk->jk", theta, self.W)

    def solution(self, theta: Array) -> Array:
        z, weight, force = 0 * self.c, self.weight(theta).T, self.B @ theta + self.c
        for _ in range(300):  # a contraction by at least 0.9
            z = np.tanh(z @ weight + force)
        return z

    def jacobian(self, theta: Array) -> Array:
        """Return dz/dtheta, shape (*lanes, n, m)."""
        z = self.solution(theta)
        slope = (1 - z**2)[..., None]
        inner = np.einsum("ijk,...k->...ji", self.W, z) + self.B
        return np.linalg.solve(np.eye(z.shape[-1]) - slope * self.weight(theta), slope * inner)

    def hypergradient(self, theta: Array) -> Array:
        z = self.solution(theta)
        gradient: Array = (np.cos(z)[..., None] * self.jacobian(theta)).reshape(-1, len(theta)).sum(0) + theta
        return gradient


@given(SEEDS)
@few
def test_the_oracle_agrees_with_central_differences(seed: int) -> None:
    case = Equilibrium.draw(4, 2, seed)
    assert_near(case.jacobian(case.theta), oracles.central_difference(case.solution, case.theta), 1e-9)


@pytest.mark.parametrize("lanes", [(), (3,)])
@few
@given(n=st.integers(1, 5), m=st.integers(1, 3), seed=SEEDS)
def test_the_hypergradient(lanes: tuple[int, ...], n: int, m: int, seed: int) -> None:
    case = Equilibrium.draw(n, m, seed, lanes)
    theta = as_tensor(case.theta)
    truth = case.hypergradient(case.theta)
    out = blo.value_and_hypergrad(case.upper, case.lower(), theta, as_tensor(0 * case.c), solver=SOLVER, gradient=EXACT)
    assert_near(out.z, case.solution(case.theta), 1e-11)
    assert_near(out.grad, truth, 1e-10)
    live = theta.clone().requires_grad_()
    case.value(live).backward()
    assert_near(live.grad, truth, 1e-10)


@pytest.mark.parametrize("lanes", [(), (3,)])
@few
@given(seed=SEEDS)
def test_jacrev_and_vmap(lanes: tuple[int, ...], seed: int) -> None:
    case = Equilibrium.draw(4, 2, seed, lanes)
    theta = as_tensor(case.theta)
    assert_near(torch.func.jacrev(case.argmin)(theta), case.jacobian(case.theta), 1e-10)
    thetas = theta + 0.05 * normal(seed, 3, 2)
    found = torch.vmap(torch.func.grad(case.value))(thetas)
    assert_near(found, np.stack([case.hypergradient(each) for each in thetas.numpy()]), 1e-10)
    jacobians = torch.vmap(torch.func.jacrev(case.argmin))(thetas)
    assert_near(jacobians, np.stack([case.jacobian(each) for each in thetas.numpy()]), 1e-10)


@pytest.mark.parametrize("lanes", [(), (3,)])
@few
@given(seed=SEEDS)
def test_second_derivatives(lanes: tuple[int, ...], seed: int) -> None:
    case = Equilibrium.draw(3, 2, seed, lanes)
    theta = as_tensor(case.theta)
    truth = oracles.central_difference(case.hypergradient, case.theta)
    assert_near(torch.func.jacrev(torch.func.grad(case.value))(theta), truth, 1e-8)
    assert_near(torch.autograd.functional.hessian(case.value, theta), truth, 1e-8)
    thetas = theta + 0.05 * normal(seed, 2, 2)
    found = torch.vmap(torch.func.jacrev(torch.func.grad(case.value)))(thetas)
    each = [oracles.central_difference(case.hypergradient, point) for point in thetas.numpy()]
    assert_near(found, np.stack(each), 1e-8)


def test_third_derivatives() -> None:
    case = Equilibrium.draw(3, 2, 8)

    def hessian(theta: Array) -> Array:
        return oracles.central_difference(case.hypergradient, theta, step=4e-3).ravel()

    truth = oracles.central_difference(hessian, case.theta, step=4e-3).reshape(2, 2, 2)
    found = torch.func.jacrev(torch.func.jacrev(torch.func.grad(case.value)))(as_tensor(case.theta))
    assert_near(found, truth, 1e-7)


@pytest.mark.parametrize("memory", [0, 4])
@few
@given(seed=SEEDS)
def test_a_long_unroll_tends_to_the_same_gradient(memory: int, seed: int) -> None:
    case = Equilibrium.draw(4, 2, seed)
    out = blo.value_and_hypergrad(
        case.upper,
        case.lower(),
        as_tensor(case.theta),
        as_tensor(0 * case.c),
        solver=blo.FixedPoint(memory=memory, max_steps=300, tol=1e-15),
        gradient=blo.Unrolled(),
        on_failure="ignore",
    )
    assert_near(out.grad, case.hypergradient(case.theta), 1e-9)


def test_products_that_cannot_be_transposed_are_refused() -> None:
    case = Equilibrium.draw(3, 2, 0)
    for products in ("forward", "finite-difference"):
        theta = as_tensor(case.theta).requires_grad_()
        with pytest.raises(blo.StructureError, match="products='reverse'"):
            case.argmin(theta, blo.Implicit(blo.Direct(), products)).sum().backward()
