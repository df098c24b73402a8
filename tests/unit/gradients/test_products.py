"""Products with second derivatives by reverse mode, forward mode and central differences, against dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.autograd.function import once_differentiable

import blo
from blo._parametric_problem import ParametricProblem
from blo.gradients._difference_point import DifferencePoint
from blo.gradients._point import Point
from blo.gradients._products import Products, point
from tests import oracles
from tests.oracles import Array, BatchedCase, QuadraticCase
from tests.strategies import SEEDS, batched_cases, normal, quadratic_cases

KINDS: tuple[Products, ...] = ("reverse", "forward", "finite-difference")
#: What each kind is good for in double precision: rounding, or its 2/3 power with gradients of size ten.
TOLERANCE = {"reverse": 1e-11, "forward": 1e-11, "finite-difference": 2e-9}
quick = settings(deadline=None, max_examples=15)
few = settings(deadline=None, max_examples=6)
TIGHT = blo.ProjectedGradient(tol=1e-12, max_steps=20_000)


def point_of(products: Products, case: QuadraticCase | BatchedCase, z: Tensor) -> Point:
    theta = case.start().requires_grad_()
    problem, _, _ = ParametricProblem.of(case.lower(), theta, case.z0())
    return point(products, problem.bind([theta]), z)


def mixed_of(case: QuadraticCase, z: Array) -> Array:
    """Return B, shape (n, m)."""
    found: Array = case.B + np.exp(case.w @ case.theta) * np.outer(case.e * z, case.w)
    return found


def near(found: Any, truth: Any, products: Products) -> None:
    tolerance = TOLERANCE[products]
    np.testing.assert_allclose(torch.as_tensor(found), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("products", KINDS)
@quick
@given(case=quadratic_cases(kinds=("free", "box", "ball"), moving=False), seed=SEEDS)
def test_products_are_those_of_dense_matrices(products: Products, case: QuadraticCase, seed: int) -> None:
    z, q = normal(seed, 2, len(case.c))
    at = point_of(products, case, z)
    near(at.optimality.slope, case.gradient(case.theta, z.numpy()), products)
    for scale in (1.0, 1e-6, 1e6):  # the displacement does not depend on the length of the vector
        near(at.times_hessian(scale * q) / scale, case.hessian(case.theta) @ q.numpy(), products)
    (cross,) = at.cross(q, torch.zeros_like(z))
    near(cross, -mixed_of(case, z.numpy()).T @ q.numpy(), products)


@pytest.mark.parametrize("products", KINDS)
@quick
@given(case=batched_cases(kinds=("free", "box")), seed=SEEDS)
def test_each_lane_has_its_own_step(products: Products, case: BatchedCase, seed: int) -> None:
    """Lanes whose directions differ by many orders of magnitude, and one of zero, are each as accurate as alone."""
    z = torch.stack([normal(seed + i, len(one.c)) for i, one in enumerate(case.cases)])
    q = torch.stack([normal(seed - 1 - i, len(one.c)) for i, one in enumerate(case.cases)])
    scales = torch.tensor([1.0, 1e-8, 1e8, 0.0], dtype=torch.float64)[: len(z), None]
    found = point_of(products, case, z).times_hessian(scales * q)
    for one, row, image, scale in zip(case.cases, q, found, scales, strict=True):
        near(image / scale if scale else image, bool(scale) * case_hessian(one) @ row.numpy(), products)
    still = [replace(one, low_slope=0 * one.low_slope, high_slope=0 * one.high_slope) for one in case.cases]
    at = point_of(products, BatchedCase(still), z)
    (cross,) = at.cross(q, torch.zeros_like(q))
    truth = -sum(mixed_of(one, x.numpy()).T @ row.numpy() for one, x, row in zip(case.cases, z, q, strict=True))
    near(cross, truth, products)


def case_hessian(case: QuadraticCase) -> Array:
    return case.hessian(case.theta)


@pytest.mark.parametrize("products", KINDS)
@pytest.mark.parametrize("linear_solver", [blo.Direct(), blo.CG()], ids=["direct", "cg"])
@few
@given(case=quadratic_cases())
def test_the_hypergradient_on_fixed_and_moving_sets(
    products: Products, linear_solver: blo.Direct | blo.CG, case: QuadraticCase
) -> None:
    gradient = blo.Implicit(linear_solver, products=products)
    out = blo.value_and_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=gradient)
    np.testing.assert_allclose(out.grad, case.hypergradient(case.theta), rtol=2e-8, atol=2e-8)
    assert out.report.ok


@pytest.mark.parametrize("products", KINDS)
@few
@given(case=batched_cases())
def test_the_hypergradient_of_a_batch(products: Products, case: BatchedCase) -> None:
    gradient = blo.Implicit(products=products)
    out = blo.value_and_hypergrad(case.upper, case.lower(), case.start(), case.z0(), solver=TIGHT, gradient=gradient)
    np.testing.assert_allclose(out.grad, case.hypergradient(case.theta), rtol=2e-8, atol=2e-8)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": torch.func.grad,
    "jacrev": torch.func.jacrev,
    "vmap": lambda f: lambda t: torch.vmap(torch.func.grad(f))(t.unsqueeze(0))[0],
}


@pytest.mark.parametrize("products", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_inside_transforms(kind: oracles.Kind, transform: Callable[..., Any], products: Products) -> None:
    case = oracles.draw(kind, 3, 2, seed=5)
    options: dict[str, Any] = {"solver": TIGHT, "gradient": blo.Implicit(blo.Direct(), products=products)}

    def value(theta: Tensor) -> Tensor:
        return case.upper(theta, blo.argmin(case.lower(), theta, case.z0(), **options))

    near(transform(value)(case.start()), case.hypergradient(case.theta), "finite-difference")


@pytest.mark.parametrize("products", KINDS)
def test_second_derivatives_and_a_backward_pass_through_vmap(products: Products) -> None:
    case = oracles.draw("ball", 3, 2, seed=5)
    options: dict[str, Any] = {"solver": TIGHT, "gradient": blo.Implicit(blo.Direct(), products=products)}

    def value(theta: Tensor) -> Tensor:
        return case.upper(theta, blo.argmin(case.lower(), theta, case.z0(), **options))

    truth = oracles.central_difference(case.hypergradient, case.theta)
    np.testing.assert_allclose(torch.func.jacrev(torch.func.grad(value))(case.start()), truth, rtol=1e-8, atol=1e-8)
    theta = case.start().repeat(2, 1).requires_grad_()
    torch.vmap(value)(theta).sum().backward()
    for row in theta.grad if theta.grad is not None else ():
        near(row, case.hypergradient(case.theta), "finite-difference")


class Network:
    """`g_i = mean softplus(W z_i + V theta) + |z_i|^2 / 2`, its derivatives written out in NumPy."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.W, self.V = normal(seed, 6, 4).to(dtype), normal(seed + 1, 6, 3).to(dtype)
        self.theta, self.z, self.q = normal(seed + 2, 3).to(dtype), normal(seed + 3, 4).to(dtype), normal(seed + 4, 4)
        self.q = self.q.to(dtype)

    def objective(self, theta: Tensor, z: Tensor) -> Tensor:
        return torch.nn.functional.softplus(self.W @ z + self.V @ theta).mean() + 0.5 * z @ z

    def truth(self) -> tuple[Array, Array]:
        """Return `H q` and `B^T q` in double precision."""
        W, V, theta, z, q = (part.double().numpy() for part in (self.W, self.V, self.theta, self.z, self.q))
        s = 1 / (1 + np.exp(-(W @ z + V @ theta)))
        bend = s * (1 - s) / len(s)
        return W.T @ (bend * (W @ q)) + q, V.T @ (bend * (W @ q))

    def point(self, products: Products) -> Point:
        theta = self.theta.clone().requires_grad_()
        problem, z, leaves = ParametricProblem.of(blo.LowerProblem(self.objective), theta, self.z)
        return point(products, problem.bind(leaves), z)


def relative(found: Any, truth: Any) -> float:
    """Return the relative error in the 2-norm."""
    difference = np.asarray(found.detach().double()) - truth
    return float(np.linalg.norm(difference) / np.linalg.norm(truth))


@pytest.mark.parametrize("products", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_a_smooth_network_in_both_precisions(seed: int, dtype: torch.dtype, products: Products) -> None:
    network = Network(dtype, seed)
    at, (Hq, Bq) = network.point(products), network.truth()
    eps = torch.finfo(dtype).eps
    tolerance = 20 * eps ** (2 / 3) if products == "finite-difference" else 50 * eps
    product, estimate = at.times_hessian(network.q), at.error(network.q)
    (cross,) = at.cross(network.q, torch.zeros_like(network.q))
    assert cross is not None and product.dtype == cross.dtype == dtype
    error = max(relative(product, Hq), relative(-cross, Bq))
    assert error <= tolerance
    if products == "finite-difference":
        assert estimate is not None and error / 10 <= estimate <= 30 * error
    else:
        assert estimate is None


@pytest.mark.parametrize("sharpness", [10.0, 30.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("first", ["hessian", "along"])
def test_a_steep_objective_gets_a_shorter_displacement_and_an_honest_estimate(first: str, sharpness: float) -> None:
    """With third derivatives far above one, `eps^(1/3)` is too far."""
    z, q = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: t * (sharpness**2 * z).sin().sum() + t * (z * z).sum())
    problem, start, leaves = ParametricProblem.of(lower, theta, z)
    at = DifferencePoint(problem.bind(leaves), start)
    a, x, w = sharpness**2, z.numpy(), q.numpy()
    truth = {"hessian": (2.0 - a**2 * np.sin(a * x)) * w, "along": (a * np.cos(a * x) + 2 * x) @ w}
    found: dict[str, Tensor] = {}
    for name in (first, "hessian", "along"):
        found[name] = at.times_hessian(q) if name == "hessian" else at.along(q)[0]  # type: ignore[assignment]
    error = max(relative(found[name], truth[name]) for name in truth)
    # The rounding of z, which is that of a phase of a, is what remains.
    assert error <= 2e-8 + 10 * (a * 1e-16) ** (2 / 3) and error / 30 <= at.error(q)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cubic_gradient_in_any_unit_of_z(dtype: torch.dtype, unit: float) -> None:
    """Far out a cube is as odd as a line: what bends is seen nearby alone."""
    z = unit * torch.tensor([0.3, -0.2], dtype=dtype)
    q, theta = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor(1.0, dtype=dtype, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: t * ((z / unit).pow(4) + 0.5 * (z / unit).square()).sum())
    problem, start, leaves = ParametricProblem.of(lower, theta, z)
    at = DifferencePoint(problem.bind(leaves), start)
    x = np.array([0.3, -0.2])
    tolerance = 100 * torch.finfo(dtype).eps ** (2 / 3)
    assert relative(at.times_hessian(q) * unit**2, (12 * x**2 + 1) * [1.0, 2.0]) <= tolerance
    (cross,) = DifferencePoint(problem.bind(leaves), start).along(q)
    assert cross is not None
    assert relative(cross * unit, (4 * x**3 + x) @ [1.0, 2.0]) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_unknowns_do_not_lengthen_the_displacement(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    W, z = rng.normal(size=(8, 40_000)) / 10, rng.normal(size=40_000) / 10
    q = W.T @ rng.normal(size=8)
    s = 1 / (1 + np.exp(-(W @ z)))
    weights = torch.as_tensor(W, dtype=dtype)
    lower = blo.LowerProblem(lambda t, z: t * torch.nn.functional.softplus(weights @ z).sum())
    theta = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    problem, start, leaves = ParametricProblem.of(lower, theta, torch.as_tensor(z, dtype=dtype))
    at = DifferencePoint(problem.bind(leaves), start)
    tolerance = 300 * torch.finfo(dtype).eps ** (2 / 3)
    assert relative(at.times_hessian(torch.as_tensor(q, dtype=dtype)), W.T @ (s * (1 - s) * (W @ q))) <= tolerance


def test_the_first_product_takes_one_more_gradient_and_the_others_none() -> None:
    calls = []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        calls.append(1)
        return (z.exp() - theta * z).sum()

    theta, z = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.zeros(2, dtype=torch.float64)
    problem, start, leaves = ParametricProblem.of(blo.LowerProblem(objective), theta, z)
    at = DifferencePoint(problem.bind(leaves), start)
    counts = []
    for product in (at.times_hessian, at.times_hessian, at.along):
        before = len(calls)
        product(torch.ones(2, dtype=torch.float64))
        counts.append(len(calls) - before)
    assert counts == [3, 2, 2]


def test_the_report_shows_the_estimate_of_differences_alone() -> None:
    case = oracles.draw("box", 4, 2, seed=3)
    for products in KINDS:
        out = blo.value_and_hypergrad(
            case.upper, case.lower(), case.start(), case.z0(), gradient=blo.Implicit(products=products)
        )
        differences = products == "finite-difference"
        assert (out.report.product_error is not None) == differences
        assert ("central differences" in str(out.report)) == differences


# Objectives without a second backward pass.


class Slope(torch.autograd.Function):
    """What a fused backward kernel is: a function whose own derivative nobody wrote."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        return grad * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("double backward is not implemented")


class Softplus(torch.autograd.Function):
    """A fused softplus."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        found: Tensor = Slope.apply(grad, ctx.saved_tensors[0])
        return found


class OnceSoftplus(torch.autograd.Function):
    """A softplus that says it is differentiable once. Torch then cuts the graph and lets second derivatives pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.softplus(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sigmoid()


def fused(x: Tensor) -> Tensor:
    found: Tensor = Softplus.apply(x)
    return found


def once(x: Tensor) -> Tensor:
    found: Tensor = OnceSoftplus.apply(x)
    return found


def attention(x: Tensor) -> Tensor:
    tokens = x.reshape(1, 1, 4, -1)
    mixed: Tensor = torch.nn.functional.scaled_dot_product_attention(tokens, tokens.tanh(), tokens.sin())
    return mixed.flatten()


def attention_by_hand(x: Tensor) -> Tensor:
    tokens = x.reshape(4, -1)
    weights = (tokens @ tokens.tanh().T / tokens.shape[-1] ** 0.5).softmax(-1)
    return (weights @ tokens.sin()).flatten()


LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "custom function": (fused, torch.nn.functional.softplus),
    "fused attention": (attention, attention_by_hand),
    "once differentiable": (once, torch.nn.functional.softplus),
}


def layered(layer: Callable[[Tensor], Tensor]) -> blo.LowerProblem:
    W, V = normal(0, 16, 5), normal(1, 16, 3)
    return blo.LowerProblem(lambda t, z: layer(W @ z + V @ t).square().mean() + 0.5 * (z * z).sum())


def evaluate(lower: blo.LowerProblem, gradient: blo.gradients.Strategy, **options: Any) -> blo.Hypergradient:
    theta, z0 = normal(2, 3), torch.zeros(5, dtype=torch.float64)
    options = {"solver": TIGHT, **options}
    return blo.value_and_hypergrad(lambda t, z: (z - 1).square().sum(), lower, theta, z0, gradient=gradient, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_central_differences_need_no_second_backward_pass(name: str) -> None:
    layer, plain = LAYERS[name]
    # Of the function marked `once_differentiable` torch returns no derivative instead of an error.
    with pytest.raises((RuntimeError, blo.ConstantWarning), match=r"not implemented|theta does not enter"):
        evaluate(layered(layer), blo.Implicit())
    truth = evaluate(layered(plain), blo.Implicit(blo.Direct()))
    for linear_solver in (blo.Direct(), blo.CG()):
        out = evaluate(layered(layer), blo.Implicit(linear_solver, products="finite-difference"))
        torch.testing.assert_close(out.grad, truth.grad, rtol=1e-8, atol=1e-9)
        assert out.report.ok
    theta = normal(2, 3).requires_grad_()
    options: dict[str, Any] = {"solver": TIGHT, "gradient": blo.Implicit(products="finite-difference")}
    (blo.argmin(layered(layer), theta, torch.zeros(5).double(), **options) - 1).square().sum().backward()
    torch.testing.assert_close(theta.grad, truth.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["custom function", "fused attention"])
def test_a_linearised_objective_needs_no_second_backward_pass_either(name: str) -> None:
    layer, plain = LAYERS[name]
    anchor, solver = normal(3, 5), blo.OneStep(0.5)
    gradient = blo.HessianFree(2.0, products="finite-difference")

    def run(gradient: blo.gradients.Strategy, layer: Callable[[Tensor], Tensor]) -> Tensor:
        lower = layered(layer).linearize(anchor, 2.0)
        out = blo.value_and_hypergrad(
            lambda t, z: (z - 1).square().sum(), lower, normal(2, 3), anchor, solver=solver, gradient=gradient
        )
        found: Tensor = out.grad
        return found

    torch.testing.assert_close(run(gradient, layer), run(blo.KKTClosedForm(), plain), rtol=1e-8, atol=1e-9)
    with pytest.raises(RuntimeError):
        run(blo.HessianFree(2.0), layer)


@pytest.mark.parametrize("products", KINDS)
def test_theta_that_does_not_enter_is_reported(products: Products) -> None:
    lower = blo.LowerProblem(lambda t, z: (z - 1).square().sum())
    with pytest.warns(blo.ConstantWarning):
        out = evaluate(lower, blo.Implicit(products=products))
    assert not out.report.depends_on_theta


@pytest.mark.parametrize("products", KINDS)
def test_a_leaf_that_requires_no_grad_is_data(products: Products) -> None:
    lower = blo.LowerProblem(lambda t, z: (z - t["weight"] * t["index"]).square().sum())
    theta = {"weight": torch.tensor([2.0, 3.0]).double(), "index": torch.tensor([1, 2])}
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(), lower, theta, torch.zeros(2).double(), gradient=blo.Implicit(products=products)
    )
    torch.testing.assert_close(out.grad["weight"], torch.tensor([1.0, 2.0]).double(), rtol=1e-7, atol=1e-7)
    assert not out.grad["index"].any()


@pytest.mark.parametrize("strategy", [blo.Implicit, blo.HessianFree])
def test_other_products_are_refused(strategy: Any) -> None:
    with pytest.raises(ValueError, match="`products` must be one of reverse, forward, finite-difference"):
        strategy(products="backward")


@pytest.mark.parametrize("products", ["forward", "finite-difference"])
def test_a_fixed_point_needs_the_transpose(products: Products) -> None:
    lower = blo.LowerProblem.fixed_point(lambda t, z: 0.3 * z.sin() + t)
    with pytest.raises(blo.StructureError, match="Use products='reverse'"):
        blo.value_and_hypergrad(
            lambda t, z: z.sum(),
            lower,
            torch.ones(2).double(),
            torch.zeros(2).double(),
            solver=blo.External(lambda t, z: z, tol=1e9),
            gradient=blo.Implicit(blo.Direct(), products=products),
        )


@pytest.mark.parametrize("first", ["active", "quadratic"])
@pytest.mark.parametrize("unit", [1e-3, 1e-2])
def test_a_displacement_that_suits_one_direction_is_tested_in_the_others(unit: float, first: str) -> None:
    """The first product, for the first coordinate, is zero at a bound, and says nothing where g is quadratic in it."""

    def found(products: Products) -> Tensor:
        def objective(t: Tensor, z: Tensor) -> Tensor:
            x = z / unit
            return (x.square() - t * x).sum() + x[1:].pow(4).sum() + t.sum() * x.sum() * x[1]

        box = blo.Box(torch.tensor([0.3 * unit if first == "active" else -unit, -unit, -unit]).double(), unit)
        theta, z0 = torch.tensor([0.3, 0.9, -0.7]).double(), torch.full((3,), 0.4 * unit).double()
        solver, gradient = blo.Newton(tol=1e-9), blo.Implicit(blo.Direct(), products=products)
        lower = blo.LowerProblem(objective, box)
        out = blo.value_and_hypergrad(lambda t, z: (z / unit).sum(), lower, theta, z0, solver=solver, gradient=gradient)
        assert isinstance(out.grad, Tensor)
        return out.grad

    torch.testing.assert_close(found("finite-difference"), found("reverse"), rtol=1e-7, atol=1e-7)
