"""No implicit part."""

from __future__ import annotations

import torch
from torch import Tensor

import blo
from tests import oracles


def test_the_hypergradient_is_the_direct_part_at_the_solution() -> None:
    case = oracles.draw("ball", 4, 3, seed=1)
    out = blo.value_and_hypergrad(
        case.upper, case.lower(), case.start(), case.z0(), solver=blo.ProjectedGradient(tol=1e-11), gradient=blo.Zero()
    )
    truth = torch.as_tensor(case.direct(case.theta))
    torch.testing.assert_close(out.grad, truth, rtol=1e-9, atol=1e-9)
    assert torch.equal(out.grad, out.direct) and not out.implicit.any()
    assert out.state["q"] is None


def test_danskin_the_value_of_an_exact_inner_problem_has_no_implicit_part() -> None:
    """With f = -g the hypergradient needs no implicit part, so this strategy is exact."""
    case = oracles.draw("box", 4, 3, seed=1, moving=False)

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return -case.objective(theta, z)

    solver = blo.ProjectedGradient(tol=1e-12, max_steps=20_000)
    zero, exact = (
        blo.value_and_hypergrad(upper, case.lower(), case.start(), case.z0(), solver=solver, gradient=gradient)
        for gradient in (blo.Zero(), blo.Implicit(blo.Direct()))
    )
    torch.testing.assert_close(zero.grad, exact.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(exact.implicit, torch.zeros(3).double(), rtol=0, atol=1e-10)


def test_the_graph_of_theta_is_never_built() -> None:
    seen: list[bool] = []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        seen.append(theta.requires_grad)
        return 0.5 * (z - theta).square().sum()

    theta = torch.ones(2, requires_grad=True)
    lower = blo.LowerProblem(objective)
    blo.value_and_hypergrad(lambda t, z: (t * z).sum(), lower, theta, torch.zeros(2), gradient=blo.Zero())
    z = blo.argmin(lower, theta, torch.zeros(2), gradient=blo.Zero())
    assert not any(seen) and not z.requires_grad
