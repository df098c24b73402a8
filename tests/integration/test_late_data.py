"""Data that change between a solve and its derivative are reported; nothing else is."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import blo

CHANGED = "the objective has changed between the solve and its backward pass"
TASKS = (1.0, 4.0, 9.0)
TIGHT = blo.LBFGS(tol=1e-12)
BACK = [
    {},
    {"solver": blo.ProjectedGradient()},
    {"solver": blo.FISTA(), "constraint": blo.Box(-5.0, 5.0)},
    {"solver": blo.Newton()},
    {"constraint": blo.L2Ball(5.0)},
    {"constraint": blo.Box(-5.0, 5.0)},
    {"gradient": blo.Implicit(blo.CG(), products="forward")},
    {"gradient": blo.Implicit(products="finite-difference")},
    {"gradient": blo.KKTClosedForm()},
    {"gradient": blo.HessianFree(3.0)},
    {"gradient": blo.ValueFunction(1e5), "solver": TIGHT},
    {"gradient": blo.ValueFunction(1e3, two_sided=True), "solver": TIGHT},
    {"gradient": blo.Unrolled(checkpoint=True)},
    {"gradient": blo.Unrolled(checkpoint=True), "solver": blo.ProjectedGradient(0.02, 200, tol=None)},
    {"solver": blo.External(lambda theta, z0: z0 + newton(float(z0.new_tensor(LATEST))), tol=1e-8)},
]
LATEST = 1.0  # what the solver of somebody else was told of the task


def newton(a: float) -> float:
    """Return the minimiser of the task below at theta = 2."""
    z = 1.0
    for _ in range(200):
        z -= (a * z - a * 4 + z**3) / (a + 3 * z * z)
    return z


TRUTH = sum(2 * z * 4 * a / (a + 3 * z * z) for a, z in ((a, newton(a)) for a in TASKS))


def task(data: Tensor, theta: Tensor, z: Tensor) -> Tensor:
    return (0.5 * data * z**2 - data * theta**2 * z + z**4 / 4).sum(-1)


def differentiate(kind: str, batched: bool = False, **options: Any) -> tuple[float, list[str]]:
    """Solve a task after another, sum up, differentiate; the data are bound to each, or `kind` says how they change."""
    global LATEST
    constraint = options.pop("constraint", blo.Free())
    theta, data, loss = torch.tensor([2.0]).double().requires_grad_(), torch.zeros(1).double(), 0.0
    z0 = torch.zeros(2, 1).double() if batched else torch.zeros(1).double()
    for a in TASKS:
        LATEST = a
        if kind == "refilled":
            data.fill_(a)
        else:
            data = torch.tensor([a]).double()
        objective: Any = lambda theta, z: task(data, theta, z)  # noqa: E731, B023
        if kind == "bound":
            objective = lambda theta, z, data=data: task(data, theta, z)  # noqa: E731
        lower = blo.LowerProblem(objective, constraint, batched=batched)
        loss = loss + blo.argmin(lower, theta, z0, **options).square().sum() / len(z0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss.backward()  # type: ignore[attr-defined]
    assert theta.grad is not None
    return float(theta.grad), [str(item.message) for item in caught if "curvature of" not in str(item.message)]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("options", BACK, ids=range(len(BACK)))
def test_a_loop_variable_and_a_refilled_buffer_are_reported(options: dict[str, Any], batched: bool) -> None:
    found, said = differentiate("bound", batched, **options)
    assert not said
    if not isinstance(options.get("gradient"), blo.HessianFree):
        assert found == pytest.approx(TRUTH, rel=1e-3 if "gradient" in options else 1e-8)
    for kind in ("late", "refilled"):
        _, said = differentiate(kind, batched, **options)
        assert len(said) == 2 and all(text.startswith(CHANGED) for text in said)  # the last task is what it was
        assert all(f"in {1 + batched} of {1 + batched}" in text and "data=data" in text for text in said)
        with pytest.raises(blo.ConvergenceError, match=CHANGED):
            differentiate(kind, batched, **options, on_failure="raise")
        assert not differentiate(kind, batched, **options, on_failure="ignore")[1]


@pytest.mark.parametrize("gradient", [blo.Unrolled(), blo.Unrolled(mode="forward"), blo.Unrolled(last=5)])
def test_what_is_not_evaluated_again_is_right_all_the_same(gradient: blo.Unrolled) -> None:
    assert differentiate("late", gradient=gradient) == differentiate("bound", gradient=gradient)


@pytest.mark.parametrize("solver", [blo.ProjectedGradient(0.02, 2000, tol=None), blo.TorchOptim(torch.optim.SGD, 1)])
def test_a_solver_that_measured_nothing_leaves_it_to_the_residual(solver: blo.solvers.Solver) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blo.FixedStepsWarning)
        _, said = differentiate("late", solver=solver)
    assert all("data that the objective captures have changed" in text for text in said) and len(said) >= 2


GRADIENTS = [blo.Implicit(), blo.ValueFunction(1e4), blo.Unrolled(checkpoint=True)]


def single(theta: Tensor, z: Tensor) -> Tensor:
    return task(DATA, theta, z)


DATA = torch.tensor([1.0]).double()


def mapped(function: Callable[[Tensor], Tensor]) -> Tensor:
    _, pullback = torch.func.vjp(torch.vmap(function), torch.tensor([[2.0], [1.5]]).double())[:2]
    yield_to_the_caller()
    return pullback(torch.ones(2, 1).double())[0]  # type: ignore[no-any-return]


def plain(function: Callable[[Tensor], Tensor]) -> Tensor:
    _, pullback = torch.func.vjp(function, torch.tensor([2.0]).double())[:2]
    yield_to_the_caller()
    return pullback(torch.ones(1).double())[0]  # type: ignore[no-any-return]


def mapped_back(function: Callable[[Tensor], Tensor]) -> Tensor:
    _, pullback = torch.func.vjp(function, torch.tensor([2.0]).double())[:2]
    yield_to_the_caller()
    return torch.vmap(pullback)(torch.ones(3, 1).double())[0]  # type: ignore[no-any-return]


def twice(function: Callable[[Tensor], Tensor]) -> Tensor:
    theta = torch.tensor([2.0]).double().requires_grad_()
    z = function(theta)
    yield_to_the_caller()
    return torch.autograd.grad(z.sum(), theta, create_graph=True)[0]


AFTER: list[float] = []


def yield_to_the_caller() -> None:
    """Change the data, where a test asks for that."""
    for value in AFTER:
        DATA.fill_(value)


@pytest.mark.parametrize(
    ("way", "gradient"),
    [
        *itertools.product([plain, mapped, mapped_back], GRADIENTS),
        *((twice, gradient) for gradient in GRADIENTS if isinstance(gradient, blo.Implicit)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_under_transforms(way: Callable[..., Tensor], gradient: blo.gradients.Strategy) -> None:
    lower = blo.LowerProblem(single)
    solver = TIGHT if isinstance(gradient, blo.ValueFunction) else blo.ProjectedGradient(0.05, 2000, 1e-9)

    def solved(theta: Tensor) -> Tensor:
        return blo.argmin(lower, theta, torch.zeros(1).double(), solver=solver, gradient=gradient)

    z = newton(1.0)
    try:
        found = way(solved)  # without a warning
        assert found.flatten()[0].item() == pytest.approx(4 / (1 + 3 * z * z), rel=1e-3)
        AFTER.append(9.0)
        with pytest.warns(blo.ConvergenceWarning, match=CHANGED):
            way(solved)
    finally:
        AFTER.clear()
        DATA.fill_(1.0)


def test_a_module_that_is_reseeded_is_reported() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1)).double()
    f, x, y = blo.functionalize(net, nn.functional.mse_loss), torch.randn(20, 3).double(), torch.randn(20, 1).double()
    lower = blo.LowerProblem(lambda t, w: f(w, x, y) + t.exp() * sum(leaf.square().sum() for leaf in w.values()))
    for reseeded in (False, True):
        theta = torch.tensor(-1.0).double().requires_grad_()
        w = blo.argmin(lower, theta, f.parameters)
        if reseeded:
            f.reseed(5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sum(leaf.square().sum() for leaf in w.values()).backward()
        assert any(CHANGED in str(item.message) for item in caught) == reseeded
        assert reseeded or not caught


def test_an_upper_objective_that_overwrites_what_the_lower_one_captures_is_reported() -> None:
    data = torch.tensor([1.0]).double()

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        data.fill_(5.0)
        return z.sum()

    lower = blo.LowerProblem(lambda theta, z: task(data, theta, z))
    with pytest.warns(blo.ConvergenceWarning, match=CHANGED):
        blo.value_and_hypergrad(upper, lower, torch.tensor([2.0]).double(), torch.zeros(1).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("constraint", [blo.Free(), blo.Box(-0.1, 0.1), blo.L2Ball(0.5), blo.Simplex()], ids=str)
def test_rounding_is_not_taken_for_a_change(constraint: blo.sets.Set, dtype: torch.dtype) -> None:
    """Objectives in large and small units, with terms that cancel, solved down to rounding."""
    rng = np.random.default_rng(0)
    rows = torch.as_tensor(rng.normal(size=(200, 6))).to(dtype)
    for unit, offset in ((1.0, 0.0), (1e6, 0.0), (1e-6, 0.0), (1.0, 1e3)):

        def objective(theta: Tensor, z: Tensor, unit: float = unit, offset: float = offset) -> Tensor:
            return unit * ((rows @ z - theta + offset) ** 2 + (rows @ z).cos()).mean()

        theta = torch.linspace(0.1, 1.0, 200).to(dtype).requires_grad_()
        for gradient in (blo.Implicit(), blo.Unrolled(checkpoint=True)):
            z = blo.argmin(blo.LowerProblem(objective, constraint), theta, torch.zeros(6).to(dtype), gradient=gradient)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                z.sum().backward()
            assert not [item for item in caught if CHANGED in str(item.message)]


def test_autocast_is_no_change() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    f, x, y = blo.functionalize(net, nn.functional.mse_loss), torch.randn(30, 4), torch.randn(30, 1)
    lower = blo.LowerProblem(lambda t, w: f(w, x, y) + t.exp() * sum(leaf.square().sum() for leaf in w.values()))
    theta = torch.tensor(-2.0).requires_grad_()
    solver = blo.LBFGS(tol=1e-2, max_steps=200)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        w = blo.argmin(lower, theta, f.parameters, solver=solver)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sum(leaf.square().sum() for leaf in w.values()).backward()
    assert not [item for item in caught if CHANGED in str(item.message)]
