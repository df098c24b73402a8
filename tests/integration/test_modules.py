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
from tests.unit.test_functionalize import built, randn, snapshot

Parameters = dict[str, Tensor]
Network = Callable[[Parameters, Tensor], Tensor]
TIGHT = blo.ProjectedGradient(tol=1e-12, max_steps=50_000)
EXACT = blo.Implicit(blo.Direct())
SEED = 4
jvp_warns = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own


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
        self.theta = torch.tensor(-1.0, dtype=torch.float64)
        self.center = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    def functional(self, **options: Any) -> Any:
        """Return the network's output as a functional."""
        return blo.functionalize(self.module, seed=SEED, **options)

    def lower(self, f: Any) -> blo.LowerProblem:
        return blo.LowerProblem(lambda theta, z: self.objective(f, theta, z))

    def objective(self, network: Network, theta: Tensor, z: Parameters) -> Tensor:
        distance = sum((p - self.center[name]).square().sum() for name, p in z.items())
        return F.cross_entropy(network(z, self.x), self.y) + theta.exp() * distance

    def upper(self, network: Network, theta: Tensor, z: Parameters) -> Tensor:
        return network(z, self.x_val).square().mean() + theta.square()

    def solved(self, theta: Tensor, z0: Parameters) -> Parameters:
        """Return the minimiser next to z0, by Newton's method on the network by hand."""
        names, shapes = list(z0), [p.shape for p in z0.values()]

        def pieces(flat: Tensor) -> Parameters:
            split = flat.split([shape.numel() for shape in shapes])
            return {name: part.reshape(shape) for name, part, shape in zip(names, split, shapes, strict=True)}

        flat = torch.cat([p.detach().reshape(-1) for p in z0.values()])
        slope = torch.func.grad(lambda flat: self.objective(self.network, theta, pieces(flat)))
        for _ in range(5):
            flat = flat - torch.linalg.solve(torch.func.jacrev(slope)(flat), slope(flat))
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
            y: Tensor = self.last(self.second(self.drop(self.norm(self.first(x)).tanh())).tanh())
            return y

    module = built(Mixed, 1)
    module.get_parameter("norm.bias").requires_grad_(False).fill_(0.3)
    (mask,) = masks((10, 3), p=0.25)

    def network(z: Parameters, x: Tensor) -> Tensor:
        y = x @ z["first.weight"].T + z["first.bias"]
        y = (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt() * z["norm.weight"] + 0.3
        y = ((mask * y.tanh()) @ z["first.weight"].T + z["second.bias"]).tanh()
        return y @ z["last.weight"].T + z["last.bias"]

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

    return Case(built(Classifier, 1), network, (5, 3, 4))


CASES = {"mixed": mixed, "attention": attention}
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@cases
def test_the_hypergradient_is_that_of_the_network_by_hand(make: Callable[[], Case]) -> None:
    case = make()
    f = case.functional()
    theta = case.theta.clone().requires_grad_()
    z = blo.argmin(case.lower(f), theta, f.parameters, solver=TIGHT, gradient=blo.Implicit(blo.CG(max_iter=500)))
    truth = case.slope(z)
    assert truth.abs() > 1e-2
    case.upper(f, theta, z).backward()
    assert theta.grad is not None
    assert (theta.grad - truth).abs() <= 1e-8


@jvp_warns
def test_every_road_leads_to_the_same_hypergradient() -> None:
    case = mixed()
    f = case.functional()
    lower = case.lower(f)
    with torch.no_grad():
        start = blo.argmin(lower, case.theta, f.parameters, solver=TIGHT)
    truth = case.slope(start)

    def value(theta: Tensor, gradient: Any = EXACT) -> Tensor:
        return case.upper(f, theta, blo.argmin(lower, theta, start, solver=TIGHT, gradient=gradient))

    def upper(theta: Tensor, z: Parameters) -> Tensor:
        return case.upper(f, theta, z)

    for gradient in (EXACT, blo.Implicit(blo.CG(max_iter=500)), blo.Implicit(blo.Direct(), products="forward")):
        assert (torch.func.grad(value)(case.theta, gradient) - truth).abs() <= 1e-8
        out = blo.value_and_hypergrad(upper, lower, case.theta, start, solver=TIGHT, gradient=gradient)
        assert (out.grad - truth).abs() <= 1e-8
    differences = blo.Implicit(blo.Direct(), products="finite-difference")
    out = blo.value_and_hypergrad(
        upper, lower, case.theta, start, solver=TIGHT, gradient=differences, on_failure="ignore"
    )
    assert (out.grad - truth).abs() <= 1e-7
    assert (torch.func.jacrev(lambda theta: value(theta)[None])(case.theta) - truth).abs() <= 1e-8
    lanes = torch.stack([case.theta, case.theta + 0.01])
    assert (torch.vmap(torch.func.grad(value))(lanes)[0] - truth).abs() <= 1e-8


def test_fused_attention_with_products_by_finite_differences() -> None:
    """The kernel has no second derivative: reverse products raise, differences of its gradients need none."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(randn(1, 1, 3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.query, x, x)

    x, target = randn(1, 1, 5, 4, seed=2), randn(1, 1, 3, 4, seed=3)
    found = []
    for fused, products in ((False, "reverse"), (True, "finite-difference"), (True, "reverse")):
        f = blo.functionalize(Attend(), F.mse_loss, fused_attention=fused)
        lower = blo.LowerProblem(lambda t, z, f=f: f(z, x, target) + t.exp() * z["query"].square().sum())
        theta = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        start = {"query": torch.zeros(1, 1, 3, 4, dtype=torch.float64)}
        z = blo.argmin(lower, theta, start, solver=TIGHT, gradient=blo.Implicit(blo.Direct(), products=products))
        if (fused, products) == (True, "reverse"):
            with pytest.raises(RuntimeError, match="not implemented"):
                z["query"].sum().backward()
        else:
            z["query"].sum().backward()
            assert theta.grad is not None
            found.append(theta.grad)
    assert found[0].abs() > 1e-3
    assert (found[0] - found[1]).abs() <= 1e-8


@pytest.mark.parametrize("gradient", [EXACT, blo.Unrolled(), blo.Zero()], ids=str)
def test_a_hypergradient_leaves_the_module_as_it_was(gradient: Any) -> None:
    case = mixed()
    before = snapshot(case.module)
    f = case.functional()
    theta, solver = case.theta.clone().requires_grad_(), blo.ProjectedGradient(step=0.2, max_steps=20, tol=None)
    options = {"solver": solver, "gradient": gradient, "on_failure": "ignore"}
    z = blo.argmin(case.lower(f), theta, f.parameters, **options)
    case.upper(f, theta, z).backward()
    out = blo.value_and_hypergrad(lambda t, z: case.upper(f, t, z), case.lower(f), theta, f.parameters, **options)
    assert theta.grad is not None
    assert (theta.grad - out.grad).abs() <= 1e-12
    assert all(p.grad is None for p in f.parameters.values())
    assert snapshot(case.module) == before


def test_running_statistics_move_once_however_many_products_are_made() -> None:
    case, twin = mixed(), mixed().module
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    case.module.register_forward_hook(count)
    f = case.functional(buffers="update-once")
    solver = blo.ProjectedGradient(step=0.2, max_steps=30, tol=None)
    gradient = blo.Implicit(blo.CG(max_iter=50, tol=1e-300))
    for step in range(1, 3):
        theta = case.theta.clone().requires_grad_()
        z = blo.argmin(case.lower(f), theta, f.parameters, solver=solver, gradient=gradient, on_failure="ignore")
        case.upper(f, theta, z).backward()
        twin(case.x)
        assert calls > 30 * step
        assert case.module.get_buffer("norm.num_batches_tracked") == step
        for name, buffer in twin.named_buffers():
            assert torch.equal(case.module.get_buffer(name), buffer)
        f.reseed(SEED)


@jvp_warns
@pytest.mark.parametrize(
    "gradient", [blo.Unrolled(), blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")], ids=str
)
def test_unrolling_is_autodiff_through_the_steps_of_the_network_by_hand(gradient: blo.Unrolled) -> None:
    case = mixed()
    f = case.functional()
    solver = blo.ProjectedGradient(step=0.2, max_steps=5, tol=None)

    def value(theta: Tensor) -> Tensor:
        z = blo.argmin(case.lower(f), theta, f.parameters, solver=solver, gradient=gradient)
        return case.upper(f, theta, z)

    def by_hand(theta: Tensor) -> Tensor:
        z = {name: p.clone().requires_grad_() for name, p in case.center.items()}
        for _ in range(5):
            loss = case.objective(case.network, theta, z)
            slopes = torch.autograd.grad(loss, list(z.values()), create_graph=True)
            z = {name: p - 0.2 * slope for (name, p), slope in zip(z.items(), slopes, strict=True)}
        return case.upper(case.network, theta, z)

    theta = case.theta.clone().requires_grad_()
    (truth,) = torch.autograd.grad(by_hand(theta), theta)
    assert (torch.autograd.grad(value(theta), theta)[0] - truth).abs() <= 1e-12
    assert (torch.func.grad(value)(case.theta) - truth).abs() <= 1e-12
    if gradient == blo.Unrolled():
        assert (torch.func.jvp(value, (case.theta,), (torch.ones_like(case.theta),))[1] - truth).abs() <= 1e-12


class Body(nn.Module):
    """Features from a strided tensor, with dropout: the order of its memory is not that of its indices."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(3, 4), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.linear(x).T).T
        return y.tanh()


def ridge(features: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.solve(features.T @ features + torch.eye(4, dtype=torch.float64), features.T @ y)


def heads() -> tuple[Any, Callable[[Parameters], Tensor], Callable[[Parameters], Tensor]]:
    """Return a body as a functional, its best head by `argmin` as a function of its parameters, and by hand."""
    f = blo.functionalize(built(Body, 1), seed=SEED)
    x, y = randn(9, 3), randn(9, seed=5)
    lower = blo.LowerProblem(lambda theta, z: ((f(theta, x) @ z - y).square().sum() + z.square().sum()) / 2)
    (mask,) = masks((4, 9), p=0.3)

    def head(theta: Parameters) -> Tensor:
        z: Tensor = blo.argmin(lower, theta, torch.zeros(4, dtype=torch.float64), solver=TIGHT, gradient=EXACT)
        return z

    def by_hand(theta: Parameters) -> Tensor:
        return ridge(((mask.T * (x @ theta["linear.weight"].T + theta["linear.bias"])).tanh()), y)

    return f, head, by_hand


def test_a_module_as_upper_variable_under_every_transform() -> None:
    """Under `jacrev` the products are made inside `vmap`, the solve is not: they must see one mask."""
    f, head, by_hand = heads()
    theta = {name: p.detach() for name, p in f.parameters.items()}
    head(f.parameters).square().sum().backward()
    truth = torch.func.grad(lambda theta: by_hand(theta).square().sum())(theta)
    found = torch.func.grad(lambda theta: head(theta).square().sum())(theta)
    for name, parameter in f.parameters.items():
        assert parameter.grad is not None
        assert (parameter.grad - truth[name]).abs().max() <= 1e-10
        assert (found[name] - truth[name]).abs().max() <= 1e-10
    jacobian, exact = torch.func.jacrev(head)(theta), torch.func.jacrev(by_hand)(theta)
    assert all((jacobian[name] - exact[name]).abs().max() <= 1e-10 for name in theta)
    lanes = {name: torch.stack([p, p + 0.1, -p]) for name, p in theta.items()}
    stacked, loop = torch.vmap(torch.func.jacrev(head))(lanes), torch.vmap(torch.func.jacrev(by_hand))(lanes)
    assert all((stacked[name] - loop[name]).abs().max() <= 1e-10 for name in theta)


def test_different_randomness_asked_of_vmap_reaches_the_lower_problem() -> None:
    f, head, _ = heads()
    x, y = randn(9, 3), randn(9, seed=5)
    lanes = {name: p.detach().expand(3, *p.shape) for name, p in f.parameters.items()}
    features = torch.vmap(lambda theta: f(theta, x), randomness="different")(lanes)
    truth = torch.stack([ridge(lane, y) for lane in features])
    assert (truth[0] - truth[1]).abs().max() > 1e-2
    found = torch.vmap(head, randomness="different")(lanes)
    assert (found - truth).abs().max() <= 1e-10


def test_tasks_in_parallel_are_a_loop_over_tasks() -> None:
    """The data are captured by the objective, and mapped over."""
    case = mixed()
    f = case.functional()
    data = torch.stack([case.x, case.x_val])
    solver = blo.ProjectedGradient(tol=1e-11, max_steps=5000)

    def adapted(theta: Tensor, x: Tensor) -> Tensor:
        def objective(theta: Tensor, z: Parameters) -> Tensor:
            distance = sum((p - case.center[name]).square().sum() for name, p in z.items())
            return F.cross_entropy(f(z, x), case.y) + theta.exp() * distance

        z = blo.argmin(blo.LowerProblem(objective), theta, case.center, solver=solver, gradient=EXACT)
        return f(z, x).square().mean()

    found = torch.vmap(torch.func.grad(adapted), in_dims=(None, 0))(case.theta, data)
    loop = torch.stack([torch.func.grad(adapted)(case.theta, x) for x in data])
    assert (found - loop).abs().max() <= 1e-9


def test_products_made_in_backward_see_the_autocast_of_the_solve() -> None:
    """The truth is a dense implicit gradient, made by plain autograd under the same autocast."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))
    x, y = randn(16, 3).float(), torch.arange(16) % 2
    f = blo.functionalize(module, F.cross_entropy)
    center = {name: p.detach() for name, p in f.parameters.items()}

    def objective(theta: Tensor, z: Parameters) -> Tensor:
        return f(z, x, y) + theta.exp() * sum((p - center[name]).square().sum() for name, p in z.items())

    def solved(theta: Tensor) -> Parameters:
        solver = blo.ProjectedGradient(step=0.2, max_steps=40, tol=None)
        z: Parameters = blo.argmin(
            blo.LowerProblem(objective), theta, center, solver=solver, gradient=EXACT, on_failure="ignore"
        )
        return z

    def upper(z: Parameters) -> Tensor:
        return sum((p * p).sum() for p in z.values())

    def plain(z: Parameters) -> Tensor:
        theta = torch.tensor(-1.0, requires_grad=True)
        point = {name: p.detach().requires_grad_() for name, p in z.items()}
        loss = F.cross_entropy(torch.func.functional_call(module, point, (x,)), y)
        loss = loss + theta.exp() * sum((p - center[name]).square().sum() for name, p in point.items())
        slopes = torch.autograd.grad(loss, list(point.values()), create_graph=True)
        flat = torch.cat([slope.reshape(-1) for slope in slopes])
        rows = [torch.autograd.grad(e, [*point.values(), theta], retain_graph=True) for e in flat]
        dense = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]).double()
        v = torch.cat([2 * p.detach().reshape(-1) for p in point.values()]).double()
        # In low precision the Hessian is not symmetric; the factorisation behind `Direct` reads its lower triangle.
        triangle = dense[:, :-1].T.tril()
        return -dense[:, -1] @ torch.linalg.solve(triangle + triangle.tril(-1).T, v)

    found = {}
    for where in ("inside", "outside"):
        theta = torch.tensor(-1.0, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            z = solved(theta)
            value = upper(z)
            truth = plain(z)
            if where == "inside":
                value.backward()
        if where == "outside":
            value.backward()
        assert theta.grad is not None
        assert theta.grad.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in z.values())
        found[where] = theta.grad
    full = plain(z)
    assert torch.equal(found["inside"], found["outside"])
    assert abs(found["outside"] - truth) <= 0.02 * abs(full - truth)
