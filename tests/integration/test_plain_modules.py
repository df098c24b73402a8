"""Modules called in objectives without `functionalize`, against the same function by hand with dense derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import blo
from tests.unit.test_functionalize import built

Parameters = dict[str, Tensor]
RANDOM = torch.Generator().manual_seed(0)
X, Y = (torch.randn(shape, generator=RANDOM, dtype=torch.float64) for shape in ((10, 3), (10, 2)))
ROWS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 1, 0, 3])
THETA = torch.tensor(1.0, dtype=torch.float64)


def normed(z: Parameters) -> Tensor:
    """Return a linear layer of normed rows; its direction comes before its length in one of torch's two kinds."""
    v = next(p for p in z.values() if p.shape == (2, 3))
    g = next(p for p in z.values() if p.shape == (2, 1))
    return X @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T + z["bias"]


#: A module, its input, and the same by hand.
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[Parameters], Tensor]]] = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 2)), X, normed),
    "old weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(3, 2)), X, normed),
    "counts": (lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), ROWS, lambda z: z["weight"][ROWS]),
    "sparse": (lambda: nn.Embedding(4, 2, sparse=True), ROWS, lambda z: z["weight"][ROWS]),
}
if hasattr(nn, "LinearCrossEntropyLoss"):  # in newer torch

    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = nn.LinearCrossEntropyOptions(allow_retain_graph=True)
            self.loss = nn.LinearCrossEntropyLoss(3, 2, options=options)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.loss(x, ROWS % 2)
            return found

    def cross_entropy(z: Parameters) -> Tensor:
        logits = X @ z["loss.linear.weight"].T
        return (logits.exp().sum(1).log() - logits[torch.arange(10), ROWS % 2]).mean()

    CASES["cross-entropy in chunks"] = (Chunked, X, cross_entropy)
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated", "ignore:There is a performance drop")


class Case:
    def __init__(self, name: str) -> None:
        make, x, self.by_hand = CASES[name]
        self.module, self.x = built(make, 3), x
        self.center = {key: p.detach().clone() for key, p in self.module.named_parameters()}

    def by_module(self, z: Parameters) -> Tensor:
        output: Tensor = torch.func.functional_call(self.module, z, (self.x,))
        return output

    def objective(self, network: Callable[[Parameters], Tensor]) -> Callable[[Tensor, Parameters], Tensor]:
        def value(t: Tensor, z: Parameters) -> Tensor:
            distance = sum((p - self.center[key]).square().sum() for key, p in z.items())
            return (network(z) - Y).square().mean() + t.exp() * distance

        return value

    def upper(self, t: Tensor, z: Parameters) -> Tensor:
        parts = [(p * torch.linspace(1, 2, p.numel(), dtype=p.dtype).view_as(p)).sum() for p in z.values()]
        return torch.stack(parts).sum() + t.square()

    def truth(self) -> Tensor:
        """Return the hypergradient by Newton's method and the implicit function theorem, with dense matrices."""
        sizes = [p.numel() for p in self.center.values()]

        def pieces(flat: Tensor) -> Parameters:
            parts = zip(self.center.items(), flat.split(sizes), strict=True)
            return {key: part.view_as(p) for (key, p), part in parts}

        flat = torch.cat([p.reshape(-1) for p in self.center.values()])

        def slope(t: Tensor, flat: Tensor) -> Tensor:
            of = lambda flat: self.objective(self.by_hand)(t, pieces(flat))  # noqa: E731
            found: Tensor = torch.func.grad(of)(flat)
            return found

        for _ in range(30):
            flat = flat - torch.linalg.solve(torch.func.jacrev(slope, 1)(THETA, flat), slope(THETA, flat))
        moves = -torch.linalg.solve(torch.func.jacrev(slope, 1)(THETA, flat), torch.func.jacrev(slope)(THETA, flat))
        direct, v = torch.func.grad(lambda t, flat: self.upper(t, pieces(flat)), (0, 1))(THETA, flat)
        total: Tensor = direct + v @ moves
        return total


WAYS: dict[str, dict[str, Any]] = {
    "reverse": {},
    "finite-difference": {"gradient": blo.Implicit(products="finite-difference")},
    "Unrolled": {"gradient": blo.Unrolled()},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_the_hypergradient_is_that_of_the_value(name: str, way: str) -> None:
    case, options = Case(name), WAYS[way]
    truth, lower = case.truth(), blo.LowerProblem(case.objective(case.by_module))
    found = blo.value_and_hypergrad(case.upper, lower, THETA, case.center, **options).grad
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=0)
    theta = THETA.clone().requires_grad_()
    case.upper(theta, blo.argmin(lower, theta, case.center, **options)).backward()
    torch.testing.assert_close(theta.grad, truth, rtol=1e-8, atol=0)
    if way != "finite-difference" and "chunks" not in name:  # which torch cannot transform
        total = lambda t: case.upper(t, blo.argmin(lower, t, case.center, **options))  # noqa: E731
        torch.testing.assert_close(torch.func.grad(total)(THETA), truth, rtol=1e-8, atol=0)


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}], ids=str)
def test_embeddings_of_theta_and_in_upper_objectives(options: dict[str, Any]) -> None:
    theta = torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
    # z* is the mean of the looked-up rows of theta, and F the sum of these rows.
    lower = blo.LowerProblem(lambda t, z: (F.embedding(ROWS, t, **options) - z).square().sum())
    truth = torch.bincount(ROWS).double()[:, None].expand(4, 2) / len(ROWS)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(out.grad, truth, rtol=1e-9, atol=1e-12)
    identity = blo.LowerProblem(lambda t, z: (z - t).square().sum())
    out = blo.value_and_hypergrad(lambda t, z: F.embedding(ROWS, z, **options).sum(), identity, theta, theta)
    torch.testing.assert_close(out.grad, truth * len(ROWS), rtol=1e-9, atol=1e-12)


def test_a_sparse_upper_gradient_is_named() -> None:
    theta = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    z = blo.argmin(blo.LowerProblem(lambda t, z: (z - t).square().sum()), theta, torch.zeros_like(theta))
    with pytest.raises(blo.StructureError, match="sparse=False"):
        F.embedding(ROWS, z, sparse=True).sum().backward()


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_an_objective_that_writes_to_z_is_refused(make: Callable[..., nn.Module]) -> None:
    module = built(lambda: make(4, 2, max_norm=0.3), 3)
    z0 = {key: p.detach() for key, p in module.named_parameters()}

    def objective(t: Tensor, z: Parameters) -> Tensor:
        out: Tensor = torch.func.functional_call(module, z, (ROWS[None],))
        return out.square().sum() + t * z["weight"].square().sum()

    with pytest.raises(blo.StructureError, match="must not write to theta or z"):
        blo.value_and_hypergrad(lambda t, z: z["weight"].sum(), blo.LowerProblem(objective), THETA, z0)


def hooked(t: Tensor, z: Tensor) -> Tensor:
    if z.requires_grad:
        z.register_hook(lambda gradient: 2 * gradient)
    return (z - t).square().sum() + 0.1 * z.pow(4).sum()


@pytest.mark.parametrize("gradient", [blo.Implicit(), blo.Implicit(products="forward"), blo.Unrolled(), blo.Zero()])
def test_an_objective_that_registers_hooks_is_refused(gradient: blo.gradients.Strategy) -> None:
    """The root of a scaled gradient is the same, but products with second derivatives would be scaled twice."""
    with pytest.raises(blo.StructureError, match="must not register hooks on theta or z"):
        blo.value_and_hypergrad(lambda t, z: z.sum(), blo.LowerProblem(hooked), X[0], torch.zeros(3), gradient=gradient)


def test_hooks_of_the_owner_of_theta_are_none_of_the_objective() -> None:
    theta, seen = torch.tensor([0.3, -0.4], requires_grad=True), []
    theta.register_hook(lambda gradient: seen.append(gradient))
    z = blo.argmin(blo.LowerProblem(lambda t, z: (z - t).square().sum()), theta, torch.zeros(2))
    z.sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_functionalize_refuses_backward_hooks(register: str) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    getattr(module[1], register)(lambda *given: None)
    with pytest.raises(blo.StructureError, match=r"must have no backward hooks, but \['1'\]"):
        blo.functionalize(module)
