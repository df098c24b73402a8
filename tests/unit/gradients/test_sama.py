"""The preconditioned estimator: its diagonal is the derivative of Adam's update, its cross term that of the problem."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import blo
from tests.strategies import normal


def adam_step(gradients: list[Tensor], lr: float, betas: tuple[float, float], eps: float) -> Tensor:
    """Return the last update of Adam after these gradients, written out."""
    first, second = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for gradient in gradients:
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient.square()
    count = len(gradients)
    return lr * (first / (1 - betas[0] ** count)) / ((second / (1 - betas[1] ** count)).sqrt() + eps)


def test_the_diagonal_is_the_derivative_of_the_update_in_its_gradient() -> None:
    parameter = torch.nn.Parameter(normal(0, 5))
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    gradients = [normal(seed, 5) for seed in range(1, 5)]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    strategy = blo.SAMA.from_adam(optimizer, {"w": parameter}, scale=3.0)
    last = gradients[-1].clone().requires_grad_()
    update = adam_step([*gradients[:-1], last], 0.1, (0.8, 0.95), 1e-3)
    (truth,) = torch.autograd.grad(update.sum(), last)
    torch.testing.assert_close(strategy.preconditioner["w"], 3.0 * truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("products", "tolerance"), [("reverse", 1e-12), ("finite-difference", 1e-8)])
def test_the_implicit_part_is_the_cross_term_on_the_preconditioned_gradient(products: str, tolerance: float) -> None:
    diagonal = {"a": normal(0, 2).exp(), "b": normal(1, 3).exp()}
    z = {"a": normal(2, 2), "b": normal(3, 3)}
    theta = normal(4, 5)

    def joined(tree: dict[str, Tensor]) -> Tensor:
        return torch.cat([tree["a"], tree["b"]])

    out = blo.value_and_hypergrad(
        lambda t, z: joined(z).sin().sum(),
        blo.LowerProblem(lambda t, z: (t.sin() * joined(z) + 0.5 * joined(z).square()).sum()),
        theta,
        z,
        solver=blo.ProjectedGradient(tol=1e-12),
        gradient=blo.SAMA(diagonal, products=products),  # type: ignore[arg-type]
    )
    solution = -theta.sin()  # the Hessian is the identity, and B = diag(cos theta)
    truth = -theta.cos() * joined(diagonal) * solution.cos()
    torch.testing.assert_close(out.implicit, truth, rtol=tolerance, atol=tolerance)


def test_with_the_inverse_hessian_for_a_diagonal_it_is_exact() -> None:
    curvature = normal(0, 4).exp()
    lower = blo.LowerProblem(lambda t, z: (0.5 * curvature * z.square() - t * z).sum(), blo.Box(-0.5, 0.5))
    theta = normal(1, 4)
    options = {"solver": blo.ProjectedGradient(tol=1e-12)}

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z - 1).square().sum()

    z0 = torch.zeros(4).double()
    exact = blo.value_and_hypergrad(upper, lower, theta, z0, gradient=blo.Implicit(blo.Direct()), **options)  # type: ignore[arg-type]
    found = blo.value_and_hypergrad(upper, lower, theta, z0, gradient=blo.SAMA(1 / curvature), **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found.grad, exact.grad, rtol=1e-8, atol=1e-8)
    assert 0 < int((exact.grad == 0).sum()) < 4  # some coordinates are held, some are not


def test_a_parameter_that_was_not_stepped_is_refused() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(blo.StructureError, match="no Adam state"):
        blo.SAMA.from_adam(torch.optim.Adam([parameter]), {"w": parameter})


def test_adamw_has_the_diagonal_of_adam() -> None:
    found = []
    for factory in (torch.optim.Adam, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1)):
        parameter = torch.nn.Parameter(normal(0, 5))
        optimizer = factory([parameter])
        parameter.grad = normal(1, 5)
        optimizer.step()
        found.append(blo.SAMA.from_adam(optimizer, {"w": parameter}).preconditioner["w"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.SGD])
def test_an_optimiser_with_another_update_is_refused_by_name(kind: type[torch.optim.Optimizer]) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([parameter], lr=0.1)  # type: ignore[call-arg]
    parameter.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(blo.StructureError, match=f"must be torch.optim.Adam.*of type {kind.__name__}"):
        blo.SAMA.from_adam(optimizer, {"w": parameter})  # type: ignore[arg-type]
