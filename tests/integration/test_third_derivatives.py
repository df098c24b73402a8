"""Derivatives of hypergradients, where the third derivative of a normalisation is wrong in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blo
from tests.integration.problems import EXACT

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in forward mode

X, Y = (torch.sin(torch.arange(24.0, dtype=torch.float64) * k).reshape(2, 3, 4) for k in (1.3, 2.1))
WEIGHT, BIAS = torch.tensor([1.2, 0.7, -0.9, 1.1]).double(), torch.tensor([0.1, -0.2, 0.3, 0.0]).double()
#: h of shape (2, 3, 4): a batch, channels and a length.
SHAPES: dict[str, tuple[int, ...]] = {"layer": (-1,), "layer over two": (-2, -1), "batch": (0, 2), "instance": (2,)}


def by_hand(kind: str, h: Tensor) -> Tensor:
    centred = h - h.mean(SHAPES[kind], keepdim=True)
    normed = centred / (centred.square().mean(SHAPES[kind], keepdim=True) + 1e-5).sqrt()
    if kind == "layer":
        return normed * WEIGHT + BIAS
    return normed if kind == "layer over two" else normed * WEIGHT[:3, None] + BIAS[:3, None]


def filled(layer: nn.Module) -> nn.Module:
    n = 4 if isinstance(layer, nn.LayerNorm) else 3
    with torch.no_grad():
        layer.weight[...], layer.bias[...] = WEIGHT[:n], BIAS[:n]
    return layer


def frozen(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    f = blo.functionalize(filled(layer.double()).requires_grad_(False))
    return lambda h: f({}, h)


W, B = WEIGHT[:3], BIAS[:3]
CASES: dict[str, tuple[str, Callable[[], Callable[[Tensor], Tensor]]]] = {
    "F.layer_norm": ("layer", lambda: lambda h: F.layer_norm(h, (4,), WEIGHT, BIAS)),
    "F.layer_norm over two axes": ("layer over two", lambda: lambda h: F.layer_norm(h, h.shape[-2:])),
    "torch.layer_norm": ("layer", lambda: lambda h: torch.layer_norm(h, (4,), WEIGHT, BIAS)),
    "LayerNorm": ("layer", lambda: filled(nn.LayerNorm(4).double())),
    "functionalized LayerNorm": ("layer", lambda: frozen(nn.LayerNorm(4))),
    "F.batch_norm": ("batch", lambda: lambda h: F.batch_norm(h, None, None, W, B, training=True)),
    "torch.batch_norm": ("batch", lambda: lambda h: torch.batch_norm(h, W, B, None, None, True, 0.1, 1e-5, True)),
    "functionalized BatchNorm1d": ("batch", lambda: frozen(nn.BatchNorm1d(3))),
    "F.instance_norm": ("instance", lambda: lambda h: F.instance_norm(h, weight=W, bias=B)),
    "functionalized InstanceNorm1d": (
        "instance",
        lambda: frozen(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)),
    ),
}
START = torch.tensor([0.4, -0.3], dtype=torch.float64)
GD = blo.ProjectedGradient(0.1, max_steps=4, tol=None)


def value(
    norm: Callable[[Tensor], Tensor], gradient: blo.gradients.Strategy = EXACT, solver: blo.solvers.Solver | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function of theta in which theta enters before and after the normalisation of something with z."""

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        y = norm(torch.einsum("ncl,ck->nkl", X, z) + theta[0] * Y)
        return 0.05 * (y - theta[1] * Y).sin().square().sum() + (z - theta.sum().cos() * X[0, :, :3]).square().sum()

    lower = blo.LowerProblem(objective)
    z0 = torch.zeros(3, 3, dtype=torch.float64)
    solver = blo.Newton(tol=1e-12) if solver is None else solver
    return lambda theta: blo.argmin(lower, theta, z0, solver=solver, gradient=gradient).sin().square().sum()


def differences(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the Jacobian by central differences of fourth order."""
    h, columns = 1e-3, []
    for along in torch.eye(len(at), dtype=at.dtype):
        sides = [function((at + k * h * along).requires_grad_()).detach() for k in (1, -1, 2, -2)]
        columns.append((8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * h))
    return torch.stack(columns, -1)


def twice_backward(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda at: torch.autograd.functional.hessian(function, at)


WAYS: dict[str, Callable[..., Any]] = {
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "jacrev of grad": lambda f: torch.func.jacrev(torch.func.grad(f)),
    "backward twice": twice_backward,
    "inside vmap": lambda f: lambda at: torch.vmap(torch.func.jacrev(torch.func.grad(f)))(at[None].repeat(2, 1))[1],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_of_the_value_function(name: str, way: str) -> None:
    kind, make = CASES[name]
    truth = differences(torch.func.grad(value(lambda h: by_hand(kind, h))), START)
    assert truth.abs().max() > 0.1
    assert (WAYS[way](value(make()))(START) - truth).abs().max() <= 1e-8


def test_third_derivatives_of_the_value_function() -> None:
    make = CASES["F.layer_norm"][1]
    truth = differences(torch.func.jacrev(torch.func.grad(value(lambda h: by_hand("layer", h)))), START)
    found = torch.func.jacrev(torch.func.jacrev(torch.func.grad(value(make()))))(START)
    assert (found - truth).abs().max() <= 1e-7


@pytest.mark.parametrize("gradient", [blo.Implicit(blo.CG()), blo.KKTClosedForm(), blo.HessianFree(2.0)], ids=str)
def test_a_linearised_problem(gradient: blo.gradients.Strategy) -> None:
    def loss(theta: Tensor, z: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return (norm(torch.einsum("ncl,ck->nkl", X, z) + theta[0] * Y) - theta[1] * Y).sin().sum()

    def upper(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        anchor = X[0, :, :3]
        lower = blo.LowerProblem(lambda theta, z: loss(theta, z, norm)).linearize(anchor, 2.0)
        return lambda at: blo.argmin(lower, at, anchor, solver=blo.OneStep(0.5), gradient=gradient).sin().sum()

    truth = differences(torch.func.grad(upper(lambda h: by_hand("batch", h))), START)
    found = torch.func.jacrev(torch.func.jacrev(upper(CASES["F.batch_norm"][1]())))(START)
    assert (found - truth).abs().max() <= 1e-8


@pytest.mark.parametrize("gradient", [blo.Unrolled(), blo.Unrolled(last=2)], ids=str)
@pytest.mark.parametrize("name", ["F.layer_norm", "functionalized BatchNorm1d"])
def test_steps_recorded_inside_transforms_are_differentiated_twice(name: str, gradient: blo.Unrolled) -> None:
    kind, make = CASES[name]
    hand = value(lambda h: by_hand(kind, h), gradient, GD)
    truth = torch.autograd.functional.hessian(hand, START)
    for way in (
        torch.func.jacrev(torch.func.jacrev(value(make(), gradient, GD))),
        torch.func.hessian(value(make(), gradient, GD)),
        torch.func.jacrev(torch.func.jacfwd(value(make(), gradient, GD))),
        WAYS["inside vmap"](value(make(), gradient, GD)),
    ):
        assert (way(START) - truth).abs().max() <= 1e-10


def test_steps_recorded_outside_transforms_are_differentiated_once() -> None:
    kind, make = CASES["F.layer_norm"]
    truth = torch.func.grad(value(lambda h: by_hand(kind, h), blo.Unrolled(), GD))(START)
    theta = START.clone().requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    out = value(make(), blo.Unrolled(), GD)(theta) * scale
    (slope,) = torch.autograd.grad(out, theta, create_graph=True)
    assert (slope - truth).abs().max() <= 1e-12
    (across,) = torch.autograd.grad(slope.sum(), scale, retain_graph=True)  # needs no third derivative
    assert abs(across - truth.sum()) <= 1e-12
    with pytest.raises(blo.DerivativeError, match="jacrev"):
        slope.sum().backward()


def test_a_captured_theta_is_differentiated_twice() -> None:
    rest = torch.zeros((), dtype=torch.float64)

    def upper(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def solved(theta: Tensor) -> Tensor:
            lower = blo.LowerProblem(lambda _, z: (norm(z * theta[0] + Y[0]) * X[0]).sum() + z.square().sum())
            return blo.argmin(lower, rest, X[0], solver=GD, gradient=blo.Unrolled()).square().sum()

        return solved

    fused, hand = upper(CASES["F.layer_norm"][1]()), upper(lambda h: by_hand("layer", h))
    for way in ("jacrev of grad", "inside vmap"):
        assert (WAYS[way](fused)(START) - WAYS[way](hand)(START)).abs().max() <= 1e-10


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"mode": "forward"}], ids=str)
@pytest.mark.parametrize("name", ["F.layer_norm", "F.batch_norm"])
def test_steps_of_newton_need_third_derivatives_at_once(name: str, options: dict[str, Any], transformed: bool) -> None:
    kind, make = CASES[name]

    def slope(norm: Callable[[Tensor], Tensor]) -> Tensor:
        function = value(norm, blo.Unrolled(**options), blo.Newton(max_steps=2, tol=None))
        theta = START.clone().requires_grad_()
        return torch.func.grad(function)(START) if transformed else torch.autograd.grad(function(theta), theta)[0]

    assert (slope(make()) - slope(lambda h: by_hand(kind, h))).abs().max() <= 1e-10


def test_an_objective_with_the_gradient_of_a_normalisation() -> None:
    def upper(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def objective(theta: Tensor, z: Tensor) -> Tensor:
            point = theta[0] * z + X[0]
            inner = norm(point).sin().sum()
            (slope,) = torch.autograd.grad(inner, point, create_graph=True)
            return 0.1 * (slope - theta[1]).square().sum() + (z - theta.sum() * Y[0]).square().sum()

        lower = blo.LowerProblem(objective)
        return lambda at: blo.argmin(lower, at, X[0], solver=blo.Newton(tol=1e-12), gradient=EXACT).sin().sum()

    theta = START.clone().requires_grad_()
    truth = differences(upper(lambda h: by_hand("layer", h)), START)
    (found,) = torch.autograd.grad(upper(lambda h: F.layer_norm(h, (4,), WEIGHT, BIAS))(theta), theta)
    assert (found - truth).abs().max() <= 1e-8


@pytest.mark.parametrize("gradient", [EXACT, blo.Unrolled()], ids=["implicit", "unrolled"])
def test_a_third_level(gradient: blo.gradients.Strategy) -> None:
    def upper(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        inner = value(norm, gradient, None if gradient is EXACT else GD)
        lower = blo.LowerProblem(lambda t, y: inner(torch.cat([y, t])) + 20 * (y - t).square().sum())
        zero = torch.zeros(1, dtype=torch.float64)
        return lambda t: blo.argmin(lower, t, zero, solver=blo.Newton(tol=1e-12), gradient=EXACT).sin()

    theta = START[:1].clone().requires_grad_()
    truth = differences(upper(lambda h: by_hand("batch", h)), theta.detach())
    (found,) = torch.autograd.grad(upper(CASES["F.batch_norm"][1]())(theta), theta)
    assert abs(found - truth) <= 1e-8


def test_first_derivatives_are_computed_by_the_fused_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **options: Any) -> Tensor:
        raise AssertionError("a formula")

    monkeypatch.setattr("blo._look.NORMS", dict.fromkeys((F.layer_norm, torch.layer_norm), refused))
    function = value(CASES["F.layer_norm"][1]())
    theta = START.clone().requires_grad_()
    function(theta).backward()
    assert theta.grad is not None
    assert (torch.func.grad(function)(START) - theta.grad).abs().max() <= 1e-13
    assert torch.autograd.grad(function(theta), theta, create_graph=True)[0].requires_grad
    with pytest.raises(AssertionError, match="a formula"):
        torch.func.jacrev(torch.func.grad(function))(START)


def test_a_normalisation_without_a_formula_is_named() -> None:
    function = value(lambda h: torch.native_layer_norm(h, (4,), WEIGHT, BIAS, 1e-5)[0])
    assert torch.isfinite(torch.func.grad(function)(START)).all()
    with pytest.raises(blo.DerivativeError, match="mean and var"):
        torch.func.jacrev(torch.func.grad(function))(START)


def test_evaluation_mode_and_running_statistics() -> None:
    mean, var = WEIGHT[:3] / 3, WEIGHT[:3].square()

    def hand(h: Tensor) -> Tensor:
        return (h - mean[:, None]) * (W / (var + 1e-5).sqrt())[:, None] + B[:, None]

    truth = differences(torch.func.grad(value(hand)), START)
    for norm in (F.batch_norm, F.instance_norm):
        known = value(lambda h, norm=norm: norm(h, mean, var, W, B, False))  # type: ignore[misc]
        assert (torch.func.jacrev(torch.func.grad(known))(START) - truth).abs().max() <= 1e-8
    layer = filled(nn.BatchNorm1d(3).double())
    f = blo.functionalize(layer.requires_grad_(False), buffers="update-once")
    before = layer.running_mean.clone()
    torch.autograd.functional.hessian(value(lambda h: f({}, h)), START)
    h = torch.einsum("ncl,ck->nkl", X, torch.zeros(3, 3, dtype=torch.float64)) + START[0] * Y
    assert (layer.running_mean - before.lerp(h.mean((0, 2)), 0.1)).abs().max() <= 1e-12
