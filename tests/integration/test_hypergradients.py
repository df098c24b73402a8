"""`value_and_hypergrad` over trees, modules, products of sets, batches and other people's solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from torch import Tensor
from torch.func import functional_call

import blo
from tests import oracles
from tests.integration.problems import (
    EXACT,
    TIGHT,
    Counted,
    as_tensor,
    assert_near,
    few,
    hypergradient,
    quick,
    solution,
)
from tests.oracles import Array, QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

ALL = [EXACT, blo.Implicit(), blo.KKTClosedForm(), blo.HessianFree(2.0), blo.Unrolled(), blo.Zero()]


def cut(flat: Tensor, kind: str) -> Any:
    """Return the numbers as a tree; the last axis is cut."""
    head, tail = flat[..., :1], flat[..., 1:]
    return {
        "tuple": lambda: (head, tail),
        "list": lambda: [head, tail],
        "dict": lambda: {"b": head, "a": tail},
        "nested": lambda: {"x": (tail, {"y": head}), "empty": ()},
        "matrix": lambda: (head, tail.unsqueeze(-1)),
        "tensor": lambda: flat,
    }[kind]()


def joined(tree: Any, kind: str) -> Tensor:
    """Undo `cut`."""
    head, tail = {
        "tuple": lambda: tree,
        "list": lambda: tree,
        "dict": lambda: (tree["b"], tree["a"]),
        "nested": lambda: (tree["x"][1]["y"], tree["x"][0]),
        "matrix": lambda: (tree[0], tree[1].squeeze(-1)),
        "tensor": lambda: (tree[..., :1], tree[..., 1:]),
    }[kind]()
    return torch.cat([head, tail], dim=-1)


@pytest.mark.parametrize("of_z", ["tuple", "list", "dict", "nested", "matrix"])
@pytest.mark.parametrize("of_theta", ["tensor", "dict", "nested"])
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_trees_of_any_shape_carry_the_same_numbers(kind: oracles.Kind, of_theta: str, of_z: str) -> None:
    case = oracles.draw(kind, 4, 3, seed=17)

    def constraint(theta: Any) -> blo.sets.Set:
        found = case.constraint(joined(theta, of_theta))
        if isinstance(found, blo.Box):
            return blo.Box(cut(found.low, of_z), cut(found.high, of_z))
        return blo.L2Ball(found.radius, cut(found.center, of_z)) if isinstance(found, blo.L2Ball) else found

    lower = blo.LowerProblem(lambda theta, z: case.objective(joined(theta, of_theta), joined(z, of_z)), constraint)

    def upper(theta: Any, z: Any) -> Tensor:
        return case.upper(joined(theta, of_theta), joined(z, of_z))

    theta, z0 = cut(case.start(), of_theta), cut(case.z0(), of_z)
    out = blo.value_and_hypergrad(upper, lower, theta, z0, solver=TIGHT, gradient=EXACT)
    assert_near(joined(out.z, of_z), case.solution(case.theta))
    assert_near(joined(out.direct, of_theta), case.direct(case.theta))
    assert_near(joined(out.implicit, of_theta), case.implicit(case.theta))
    assert_near(joined(out.grad, of_theta), case.hypergradient(case.theta))


def test_the_lower_variable_may_be_the_parameters_of_a_module() -> None:
    """Ridge regression with one learned log-weight a column; truth from NumPy's normal equations."""
    rng = np.random.default_rng(0)
    X, Y, X2, Y2 = (rng.normal(size=shape) for shape in ((12, 3), (12, 2), (8, 3), (8, 2)))
    module = torch.nn.Linear(3, 2, dtype=torch.float64)
    data = [as_tensor(array) for array in (X, Y, X2, Y2)]

    def lower(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
        error = functional_call(module, z, (data[0],)) - data[1]
        return 0.5 * error.square().sum() + 0.5 * (theta.exp() * z["weight"].square()).sum()

    def upper(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
        return 0.5 * (functional_call(module, z, (data[2],)) - data[3]).square().sum()

    def value(theta: Array) -> Array:
        design = np.hstack([X, np.ones((12, 1))])
        ridge = np.diag([*np.exp(theta), 0.0])
        weights = np.linalg.solve(design.T @ design + ridge, design.T @ Y)
        return np.array([0.5 * np.sum((np.hstack([X2, np.ones((8, 1))]) @ weights - Y2) ** 2)])

    theta = 0.3 * rng.normal(size=3)
    z0 = {name: parameter.detach() for name, parameter in module.named_parameters()}
    before = {name: tensor.clone() for name, tensor in z0.items()}
    problem = blo.LowerProblem(lower)
    for gradient in (EXACT, blo.Implicit()):
        out = blo.value_and_hypergrad(upper, problem, as_tensor(theta), z0, solver=TIGHT, gradient=gradient)
        assert_near(out.value, value(theta)[0])
        assert_near(out.grad, oracles.central_difference(value, theta)[0])
    assert all(torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


def test_the_upper_variable_may_be_the_parameters_of_a_module() -> None:
    """An attack linearised at an anchor, against autodiff through the step; every parameter has its gradient."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Softplus(), torch.nn.Linear(7, 3)).double()
    x, labels = normal(1, 4, 5), torch.tensor([0, 2, 1, 1])
    anchor = normal(2, 4, 5, scale=0.05)

    def losses(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(functional_call(net, theta, (x + z,)), labels, reduction="none")

    def upper(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return losses(theta, z).mean()

    theta = dict(net.named_parameters())
    slope = torch.autograd.grad(-losses(theta, live := anchor.clone().requires_grad_()).sum(), live, create_graph=True)
    z = (anchor - slope[0] / 5.0).clamp(-0.1, 0.1)
    truth = torch.autograd.grad(upper(theta, z), list(theta.values()))
    lower = blo.LowerProblem(lambda t, z: -losses(t, z), blo.Box(-0.1, 0.1), batched=True).linearize(anchor, 5.0)
    out = blo.value_and_hypergrad(upper, lower, theta, anchor, solver=blo.OneStep(0.2), gradient=blo.KKTClosedForm())
    assert out.grad.keys() == theta.keys()
    for found, expected in zip(out.grad.values(), truth, strict=True):
        assert_near(found, expected, 1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
@few
@given(seed=SEEDS)
def test_a_product_of_sets_is_its_parts(as_dict: bool, batched: bool, seed: int) -> None:
    theta = normal(seed, 2, scale=0.5)
    draw = oracles.draw_batch if batched else lambda kind, _, *rest, **options: oracles.draw(kind, *rest, **options)
    cases = [draw(kind, 2, 3, 2, seed) for kind in ("simplex", "free", "ball", "box")]
    if not batched:
        cases = [oracles.draw(kind, 3, 2, seed, theta=theta.numpy()) for kind in ("simplex", "free", "ball", "box")]
    names = ["s", "f", "b", "x"]

    def parts(tree: Any) -> list[Any]:
        return [tree[name] for name in names] if as_dict else list(tree)

    def gather(items: list[Any]) -> Any:
        return dict(zip(reversed(names), reversed(items), strict=True)) if as_dict else tuple(items)

    def constraint(theta: Tensor) -> blo.Product:
        sets = [case.constraint(theta) for case in cases]
        return blo.Product(dict(zip(names, sets, strict=True))) if as_dict else blo.Product(*sets)

    def total(method: str) -> Callable[[Tensor, Any], Tensor]:
        return lambda theta, z: sum(
            getattr(case, method)(theta, part) for case, part in zip(cases, parts(z), strict=True)
        )

    lower = blo.LowerProblem(total("objective"), constraint, batched=batched)
    point = cases[0].start()
    z0 = gather([case.z0() for case in cases])
    out = blo.value_and_hypergrad(total("upper"), lower, point, z0, solver=TIGHT, gradient=EXACT)
    for case, part in zip(cases, parts(out.z), strict=True):
        assert_near(part, case.solution(case.theta))
    assert_near(out.grad, np.sum([case.hypergradient(case.theta) for case in cases], axis=0))


@quick
@given(quadratic_cases())
def test_both_entrances_give_the_same_gradient(case: QuadraticCase) -> None:
    """Whatever the strategy: one route keeps a graph of the lower gradient, the other uses `torch.func`."""
    lower = case.lower().linearize(case.z0(), 2.0)
    for gradient in ALL:
        options: dict[str, Any] = {"solver": blo.OneStep(0.5), "gradient": gradient}
        out = blo.value_and_hypergrad(case.upper, lower, case.start(), case.z0(), **options)
        theta = case.start().requires_grad_()
        case.upper(theta, blo.argmin(lower, theta, case.z0(), **options)).backward()
        assert_near(out.grad, theta.grad, 1e-11)


@few
@given(SEEDS)
def test_a_lower_problem_that_is_not_quadratic_solved_by_scipy(seed: int) -> None:
    """`g = sum_i log(2 cosh(W z + V theta)_i) + 1/2 |z - theta|^2`; SciPy solves, for the library and the truth."""
    rng = np.random.default_rng(seed)
    W, V, target = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.normal(size=3)

    def slope(z: Array, theta: Array) -> Array:
        return W.T @ np.tanh(W @ z + V @ theta) + z - theta

    def curvature(z: Array, theta: Array) -> Array:
        return W.T @ np.diag(1 - np.tanh(W @ z + V @ theta) ** 2) @ W + np.eye(3)

    def solve(theta: Array) -> Array:
        z = scipy.optimize.root(slope, np.zeros(3), (theta,), jac=curvature, tol=1e-10).x
        return z - np.linalg.solve(curvature(z, theta), slope(z, theta))  # one Newton step to rounding

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        inner = as_tensor(W) @ z + as_tensor(V) @ theta
        return torch.logaddexp(inner, -inner).sum() + 0.5 * (z - theta).square().sum()

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z - as_tensor(target)).pow(4).sum() + theta.sin() @ z

    def value(theta: Array) -> Array:
        z = solve(theta)
        return np.array([np.sum((z - target) ** 4) + np.sin(theta) @ z])

    point, lower = 0.5 * rng.normal(size=3), blo.LowerProblem(objective)
    truth = oracles.central_difference(value, point)[0]
    scipy_solver = blo.External(lambda theta, z0: as_tensor(solve(theta.numpy())), tol=1e-10)
    for solver in (scipy_solver, TIGHT):
        for gradient in (EXACT, blo.Implicit()):
            out = blo.value_and_hypergrad(
                upper, lower, as_tensor(point), torch.zeros(3).double(), solver=solver, gradient=gradient
            )
            assert_near(out.grad, truth, 1e-8)
            assert out.report.ok


@quick
@given(quadratic_cases())
def test_an_external_solver_is_differentiated_implicitly(case: QuadraticCase) -> None:
    solver = blo.External(lambda theta, z0: as_tensor(case.solution(theta.numpy())), tol=1e-10)
    assert_near(hypergradient(case, solver=solver).grad, case.hypergradient(case.theta))
    assert_near(torch.func.jacrev(solution(case, solver=solver))(case.start()), case.jacobian(case.theta))


@pytest.mark.parametrize("gradient", ALL, ids=str)
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_a_batch_calls_the_objective_as_often_as_one_problem(
    kind: oracles.Kind, gradient: blo.gradients.Strategy
) -> None:
    case = oracles.draw(kind, 3, 2, seed=1)

    def calls(lanes: int) -> tuple[int, Tensor]:
        rows = Counted(torch.vmap(case.objective, in_dims=(None, 0)))
        lower = blo.LowerProblem(rows, case.constraint(case.start()), batched=True)
        out = blo.value_and_hypergrad(
            lambda theta, z: torch.vmap(case.upper, in_dims=(None, 0))(theta, z).sum(),
            lower,
            case.start(),
            case.z0().expand(lanes, -1),
            solver=TIGHT,
            gradient=gradient,
            on_failure="ignore",
        )
        return rows.calls, out.grad

    one, single = calls(1)
    many, total = calls(64)
    assert many == one
    assert_near(total, 64 * single)


@few
@given(quadratic_cases())
def test_the_slope_of_a_linearised_problem_is_computed_once_for_a_theta(case: QuadraticCase) -> None:
    for gradient in ALL:
        objective = Counted(case.objective)
        lower = blo.LowerProblem(objective, case.constraint).linearize(case.z0(), 2.0)
        out = blo.value_and_hypergrad(
            case.upper,
            lower,
            case.start(),
            case.z0(),
            solver=blo.ProjectedGradient(step=0.1, max_steps=7, tol=None),
            gradient=gradient,
            on_failure="ignore",
        )
        assert objective.calls == 1
        assert out.report.lower_steps == 7


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_single_precision_agrees_to_single_precision(kind: oracles.Kind) -> None:
    case = oracles.draw(kind, 4, 3, seed=2)

    def single(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda theta, z: function(theta.double(), z.double()).float()

    def constraint(theta: Tensor) -> blo.sets.Set:
        found = case.constraint(theta.double())
        if isinstance(found, blo.Box):
            return blo.Box(found.low.float(), found.high.float())
        if isinstance(found, blo.L2Ball):
            return blo.L2Ball(found.radius.float(), found.center.float())
        return blo.Simplex(found.total.float()) if isinstance(found, blo.Simplex) else found

    lower = blo.LowerProblem(single(case.objective), constraint)
    for gradient in (EXACT, blo.Implicit()):
        out = blo.value_and_hypergrad(
            single(case.upper),
            lower,
            case.start().float(),
            case.z0().float(),
            solver=blo.ProjectedGradient(tol=1e-6),
            gradient=gradient,
        )
        assert out.grad.dtype == out.z.dtype == torch.float32
        assert_near(out.grad.double(), case.hypergradient(case.theta), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_z0_rules_over_that_of_the_set(dtype: torch.dtype) -> None:
    for other in (torch.float32, torch.float64, torch.int64):
        one = torch.ones((), dtype=other)
        for constraint in (blo.Box(-one, one.expand(3)), blo.L2Ball(one, one.expand(3)), blo.Simplex(one)):
            lower = blo.LowerProblem(lambda t, z: (z - t).square().sum(), constraint)
            out = blo.value_and_hypergrad(
                lambda t, z: z.square().sum(),
                lower,
                torch.tensor([3.0, 0.4, -2.0], dtype=dtype),
                torch.zeros(3, dtype=dtype),
            )
            assert out.z.dtype == out.grad.dtype == dtype


def test_leaves_of_theta_that_are_not_floating_point_are_data() -> None:
    case = oracles.draw("box", 3, 2, seed=3)
    order = torch.tensor([2, 0, 1])
    lower = blo.LowerProblem(
        lambda theta, z: case.objective(theta["theta"], z[theta["order"]]),
        lambda theta: (lambda box: blo.Box(box.low[theta["order"].argsort()], box.high[theta["order"].argsort()]))(
            case.constraint(theta["theta"])
        ),
    )
    theta = {"order": order, "theta": case.start()}

    def upper(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return case.upper(theta["theta"], z[theta["order"]])

    out = blo.value_and_hypergrad(upper, lower, theta, case.z0(), solver=TIGHT, gradient=EXACT)
    assert_near(out.grad["theta"], case.hypergradient(case.theta))
    assert not out.grad["order"].any()
    live = {"order": order, "theta": case.start().requires_grad_()}
    upper(live, blo.argmin(lower, live, case.z0(), solver=TIGHT, gradient=EXACT)).backward()
    assert_near(live["theta"].grad, case.hypergradient(case.theta))


@pytest.mark.parametrize("of", ["theta and z", "theta", "z"])
def test_arguments_stay_as_they_are_and_results_are_constants(of: str) -> None:
    case = oracles.draw("ball", 3, 2, seed=4)
    theta, z0 = case.start().requires_grad_(), case.z0() + 0.1
    before = theta.detach().clone(), z0.clone()
    uppers = {"theta and z": case.upper, "theta": lambda theta, _: theta.sum(), "z": lambda _, z: z.square().sum()}
    out = blo.value_and_hypergrad(uppers[of], case.lower(), theta, z0, solver=TIGHT)
    assert torch.equal(theta, before[0]) and torch.equal(z0, before[1])
    assert theta.grad is None and theta.requires_grad
    for tensor in (out.value, out.grad, out.direct, out.implicit, out.z, out.state["z"], out.state["q"]):
        assert not tensor.requires_grad


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_lower_variable_of_one_number(shape: tuple[int, ...]) -> None:
    """`z* = theta^2`, whose upper value `z^3` has the derivative `6 theta^5`."""
    lower = blo.LowerProblem(lambda theta, z: 0.5 * (z - theta**2).square().sum())
    theta = torch.tensor(1.3, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda _, z: z.pow(3).sum(), lower, theta, torch.zeros(shape).double(), solver=TIGHT)
    assert out.z.shape == shape
    assert_near(out.grad, 6 * 1.3**5)


@pytest.mark.parametrize("scale", [1e-100, 1e-8, 1e8, 1e100])
def test_huge_and_tiny_upper_values_lose_no_digits(scale: float) -> None:
    case = oracles.draw("ball", 4, 2, seed=6)
    for gradient in (EXACT, blo.Implicit()):
        out = blo.value_and_hypergrad(
            lambda theta, z: scale * case.upper(theta, z),
            case.lower(),
            case.start(),
            case.z0(),
            solver=TIGHT,
            gradient=gradient,
        )
        assert_near(out.grad / scale, case.hypergradient(case.theta))


def test_an_upper_objective_of_z_alone_has_no_direct_part() -> None:
    case = oracles.draw("simplex", 4, 2, seed=8)
    w = normal(0, 4)
    out = blo.value_and_hypergrad(lambda _, z: w @ z, case.lower(), case.start(), case.z0(), solver=TIGHT)
    assert not out.direct.any()
    assert_near(out.grad, case.jacobian(case.theta).T @ w.numpy())


def test_an_upper_objective_of_theta_alone_has_no_implicit_part() -> None:
    case = oracles.draw("simplex", 4, 2, seed=8)
    out = blo.value_and_hypergrad(
        lambda theta, _: theta.square().sum(), case.lower(), case.start(), case.z0(), solver=TIGHT
    )
    assert not out.implicit.any()
    assert_near(out.grad, 2 * case.theta, 1e-15)


WITHOUT_GRADIENTS: dict[str, blo.gradients.Strategy] = {
    "implicit": blo.Implicit(),
    "hessian-free": blo.HessianFree(2.0),
    "value function": blo.ValueFunction(),
    "zero": blo.Zero(),
    "unrolled": blo.Unrolled(),
    "start": blo.Unrolled(start=lambda theta: 0 * theta),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "last": blo.Unrolled(last=2),
}


@pytest.mark.parametrize("tol", [None, 1e-8])
@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_under_no_grad_every_strategy_returns_the_solution(name: str, tol: float | None) -> None:
    theta = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda theta, z: 0.5 * (z - theta).square().sum())
    solver = blo.ProjectedGradient(0.5, max_steps=40, tol=tol)
    with torch.no_grad():
        z = blo.argmin(lower, theta, 0 * theta, solver=solver, gradient=WITHOUT_GRADIENTS[name])
    assert not z.requires_grad
    torch.testing.assert_close(z, theta.detach(), rtol=1e-7, atol=0)
