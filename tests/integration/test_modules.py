"""Hypergradients through modules: against central differences of the same networks written by hand, re-solved.

The oracle shares nothing with the library: it draws its masks itself and solves by Newton's method with dense Hessians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blo

Parameters = dict[str, Tensor]
Network = Callable[[Parameters, Tensor], Tensor]
TIGHT = blo.ProjectedGradient(tol=1e-12, max_steps=50_000)
EXACT = blo.Implicit(blo.Direct())
SEED = 4
jvp_warns = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(module: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return module().double()


def masks(*shapes: tuple[int, ...], p: float) -> list[Tensor]:
    """Return what dropout multiplies by when tensors of these shapes pass it one after the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return [F.dropout(torch.ones(shape, dtype=torch.float64), p) for shape in shapes]


class Case:
    """A module as the lower variable, and the network it is, by hand.

    Lower objective: cross-entropy on a training batch plus `exp(theta)` times the squared distance from the start.
    Upper objective: the same network's squared output on a validation batch, and theta squared.
    """

    def __init__(self, module: nn.Module, network: Network, shape: tuple[int, ...]) -> None:
        self.module, self.network = module, network
        self.x, self.x_val = randn(*shape, seed=2), randn(*shape, seed=3)
        self.y = torch.arange(shape[0]) % 2
        self.theta = torch.tensor(-0.5, dtype=torch.float64)
        self.center = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    def functional(self, **options: Any) -> Any:
        """Return the network's output as a functional."""
        return blo.functionalize(self.module, seed=SEED, **options)

    def lower(self, f: Any) -> blo.LowerProblem:
        return blo.LowerProblem(lambda theta, z: self.objective(f, theta, z))

    def objective(self, network: Network, theta: Tensor, z: Parameters) -> Tensor:
        distance = sum((p - self.center[name]).square().sum() for name, p in z.items())
        return F.cross_entropy(network(z, self.x), self.y, reduction="sum") + theta.exp() * distance

    def upper(self, network: Network, theta: Tensor, z: Parameters) -> Tensor:
        return network(z, self.x_val).square().mean() + theta.square()

    def solved(self, theta: Tensor, z0: Parameters) -> Parameters:
        """Return the minimiser next to z0, by Newton's method on the network by hand."""
        names, shapes = list(z0), [p.shape for p in z0.values()]

        def pieces(flat: Tensor) -> Parameters:
            split = flat.split([shape.numel() for shape in shapes])
            return {name: part.reshape(shape) for name, part, shape in zip(names, split, shapes, strict=True)}

        flat = torch.cat([p.detach().reshape(-1) for p in z0.values()])
        for _ in range(8):
            point = flat.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.objective(self.network, theta, pieces(point)), point, create_graph=True)
            rows = [torch.autograd.grad(entry, point, retain_graph=True)[0] for entry in slope]
            flat = flat - torch.linalg.solve(torch.stack(rows), slope.detach())
        return pieces(flat)

    def slope(self, z: Parameters, h: float = 2e-3) -> Tensor:
        """Return dF/dtheta by central differences of order four of the re-solved problem."""

        def value(t: float) -> Tensor:
            theta = self.theta + t
            return self.upper(self.network, theta, self.solved(theta, z))

        return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)


def mixed() -> Case:
    """Train-mode batch normalisation, dropout and a frozen, a shared and a free layer."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.second.weight = self.first.weight
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.25)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.drop(self.norm(self.second(self.first(x).tanh())).tanh()))
            return y

    module = seeded(Mixed)
    module.get_parameter("norm.bias").requires_grad_(False).fill_(0.3)
    (mask,) = masks((10, 3), p=0.25)

    def network(z: Parameters, x: Tensor) -> Tensor:
        y = (x @ z["first.weight"].T + z["first.bias"]).tanh() @ z["first.weight"].T + z["second.bias"]
        y = (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt() * z["norm.weight"] + 0.3
        return mask * y.tanh() @ z["last.weight"].T + z["last.bias"]

    return Case(module, network, (10, 3))


def attention() -> Case:
    """A transformer layer with dropout, whose first mask is on the attention itself."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(
                4, 2, dim_feedforward=3, dropout=0.2, activation=F.gelu, batch_first=True, norm_first=True
            )
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.layer(x).mean(1))
            return y

    drop = masks((5, 2, 3, 3), (5, 3, 4), (5, 3, 3), (5, 3, 4), p=0.2)

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def network(z: Parameters, x: Tensor) -> Tensor:
        p = {name.removeprefix("layer."): tensor for name, tensor in z.items()}
        y = normed(x, p["norm1.weight"], p["norm1.bias"])
        heads = (y @ p["self_attn.in_proj_weight"].T + p["self_attn.in_proj_bias"]).reshape(5, 3, 3, 2, 2)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = (query @ key.mT / 2**0.5).softmax(-1) * drop[0] @ value
        y = seen.transpose(1, 2).reshape(5, 3, 4) @ p["self_attn.out_proj.weight"].T + p["self_attn.out_proj.bias"]
        x = x + y * drop[1]
        y = F.gelu(normed(x, p["norm2.weight"], p["norm2.bias"]) @ p["linear1.weight"].T + p["linear1.bias"])
        y = (y * drop[2]) @ p["linear2.weight"].T + p["linear2.bias"]
        return (x + y * drop[3]).mean(1) @ p["last.weight"].T + p["last.bias"]

    return Case(seeded(Classifier), network, (5, 3, 4))


CASES = {"mixed": mixed, "attention": attention}
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@cases
def test_the_network_by_hand_is_the_module(make: Callable[[], Case]) -> None:
    case = make()
    f = case.functional()
    assert (f(f.parameters, case.x) - case.network(f.parameters, case.x)).abs().max() <= 1e-14


@cases
@jvp_warns
def test_the_hypergradient_is_that_of_the_network_by_hand(make: Callable[[], Case]) -> None:
    """One solution, every strategy and every road to the gradient."""
    case = make()
    f = case.functional()
    lower, theta = case.lower(f), case.theta.clone().requires_grad_()
    z = blo.argmin(lower, theta, f.parameters, solver=TIGHT, gradient=EXACT)
    truth = case.slope(z)
    assert truth.abs() > 1e-2
    case.upper(f, theta, z).backward()
    assert theta.grad is not None
    assert (theta.grad - truth).abs() <= 1e-8

    start = {name: p.detach() for name, p in z.items()}

    def value(theta: Tensor, gradient: Any = EXACT) -> Tensor:
        return case.upper(f, theta, blo.argmin(lower, theta, start, solver=TIGHT, gradient=gradient))

    def upper(theta: Tensor, z: Parameters) -> Tensor:
        return case.upper(f, theta, z)

    for gradient in (EXACT, blo.Implicit(blo.CG(max_iter=500))):
        assert (torch.func.grad(value)(case.theta, gradient) - truth).abs() <= 1e-8
        out = blo.value_and_hypergrad(upper, lower, case.theta, start, solver=TIGHT, gradient=gradient)
        assert (out.grad - truth).abs() <= 1e-8
    assert (torch.func.jacrev(lambda theta: value(theta)[None])(case.theta) - truth).abs() <= 1e-8
    lanes = torch.stack([case.theta, case.theta + 0.01])
    assert (torch.vmap(torch.func.grad(value))(lanes)[0] - truth).abs() <= 1e-8
    assert blo.check_hypergrad(upper, lower, case.theta, start, solver=TIGHT, gradient=EXACT).ok
