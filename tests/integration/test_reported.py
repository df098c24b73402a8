"""What could go wrong without a word is refused or reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo.solvers import Problem, Solution, Solver
from blo.stochastic import run
from tests.accelerator import Accelerator, there
from tests.integration.problems import assert_near


def squares(theta: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (z - theta).square().sum()


def test_a_tilted_solve_that_stops_early() -> None:
    lower = blo.LowerProblem(lambda t, z: (torch.tensor([1.0, 100.0]) * (z - t).square()).sum())
    theta = torch.ones(2)
    options: dict[str, Any] = {"solver": blo.ProjectedGradient(0.004, max_steps=3), "gradient": blo.ValueFunction(10.0)}
    with pytest.warns(blo.ConvergenceWarning, match="the lower solve has not converged"):
        blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, theta, **options)


def test_a_report_read_after_a_step_of_the_optimiser_is_one_of_theta_before_it() -> None:
    theta = torch.tensor([0.5, -1.0], dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: squares(t.exp(), z), strong_convexity=1.0)
    options: dict[str, Any] = {"solver": blo.ProjectedGradient(0.5, max_steps=4, tol=None), "on_failure": "ignore"}
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, torch.zeros_like(theta), **options)
    error = 0.5**4 * theta.exp().norm()  # each step halves the distance
    theta.sub_(10.0)
    assert out.report.lower_error_bound == pytest.approx(float(error), rel=1e-12)
    assert out.report.adjoint_error_bound is not None and out.report.adjoint_error_bound < 1e-12


@dataclass(frozen=True)
class Early(Solver):
    """Stops at a residual below its tolerance, far from a solution of a problem with little curvature."""

    tol: float = 1e-3

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        slope = problem.gradient(z0)
        return Solution(z0, problem.residual(z0, slope), self.tol, steps=0, slope=slope)


class Sure(Early):
    """Says that it has tested its solution, so that nobody tests it again."""

    confirms = True


def test_a_solution_that_its_solver_has_not_confirmed_is_tested() -> None:
    lower = blo.LowerProblem(lambda t, z: 1e-6 * squares(t, z))
    problem = (lambda t, z: z.sum(), lower, torch.ones(2).double(), torch.zeros(2).double())
    with pytest.warns(blo.ConvergenceWarning, match="the lower solve has not converged"):
        blo.value_and_hypergrad(*problem, solver=Early())
    blo.value_and_hypergrad(*problem, solver=Sure())  # a warning would be an error


LATE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a set that moves": ({"constraint": lambda t: blo.Box(-t.exp(), t.exp())}, {}),
    "finite differences": ({}, {"gradient": blo.Implicit(products="finite-difference")}),
    "a diagonal for the inverse, by finite differences": ({}, {"gradient": blo.SAMA(0.5)}),
    "a diagonal for the inverse": ({}, {"gradient": blo.SAMA(0.5, products="reverse")}),
    "a known convexity": ({"strong_convexity": 1.0}, {}),
    "nothing that depends on theta": ({}, {}),
    "unrolled steps": ({}, {"solver": blo.ProjectedGradient(0.5, max_steps=4, tol=None), "gradient": blo.Unrolled()}),
}


@pytest.mark.parametrize("name", LATE)
def test_theta_is_copied_only_for_a_report_that_depends_on_it(name: str) -> None:
    """The report that is read after theta has changed is the one that is read at once."""
    problem, options = LATE[name]
    places = []

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        places.append(theta.data_ptr())
        return (z * theta).sum()

    def call(theta: Tensor, change: float) -> str:
        lower = blo.LowerProblem(lambda t, z: squares(t, z) + 0.1 * z.pow(4).sum(), **problem)
        out = blo.value_and_hypergrad(upper, lower, theta, torch.zeros_like(theta), **options)
        theta.add_(change)
        return str(out.report)

    texts = [call(torch.tensor([0.5, 3.0], dtype=torch.float64), change) for change in (0.0, -5.0)]
    assert texts[0] == texts[1]
    theta = torch.tensor([0.5, 3.0], dtype=torch.float64)
    call(theta, 0.0)
    constant = ("nothing that depends on theta", "unrolled steps", "a diagonal for the inverse")
    assert (places[-1] == theta.data_ptr()) == (name in constant)


def test_a_value_that_is_theta_itself_does_not_change_with_it() -> None:
    theta = torch.tensor(2.0, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: t, blo.LowerProblem(squares), theta, torch.zeros(1).double())
    theta.add_(1.0)
    assert (out.value.item(), out.grad.item()) == (2.0, 1.0)


@pytest.mark.parametrize(
    "solver", [None, blo.ProjectedGradient(0.3), blo.External(lambda theta, z: z)], ids=lambda s: type(s).__name__
)
def test_a_solution_at_which_the_solve_started_is_a_tensor_of_its_own(solver: blo.solvers.Solver | None) -> None:
    theta, z0 = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), blo.LowerProblem(squares), theta, z0, solver=solver)
    z0.add_(1.0)
    assert out.z.tolist() == out.state["z"].tolist() == [1.0, 1.0]
    z0.fill_(1.0)
    with torch.no_grad():
        blo.argmin(blo.LowerProblem(squares), theta, z0, solver=solver).add_(1.0)
    assert z0.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("gradient", [blo.KKTClosedForm(), blo.HessianFree(1.0)], ids=str)
def test_a_saddle_on_a_curved_boundary(gradient: blo.gradients.Strategy) -> None:
    """Outside the unit circle the nearest point to a far one is not a minimum along the circle when it lies inside."""
    outside = blo.SmoothConstraints(inequalities=lambda z: (1 - z.square().sum()).reshape(1))
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum(), outside)
    start = torch.tensor([-1.0, 0.0], dtype=torch.float64)  # the farthest point of the circle from theta
    solver = blo.External(lambda theta, z0: z0)
    theta = torch.tensor([0.5, 0.0], dtype=torch.float64)
    out = blo.value_and_hypergrad(
        lambda t, z: z.sum(), lower, theta, start, solver=solver, gradient=gradient, on_failure="ignore"
    )
    assert out.report.linear_status is blo.Status.INDEFINITE


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.1}], ids=str)
def test_an_adam_whose_update_has_another_derivative(options: dict[str, Any]) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1, **options)
    parameter.square().sum().backward()
    optimizer.step()
    with pytest.raises(blo.StructureError, match="Adam without amsgrad, maximize and weight decay"):
        blo.SAMA.from_adam(optimizer, {"z": parameter})


@pytest.mark.parametrize("make", [blo.L1, lambda weight: blo.ElasticNet(weight, 0.1)], ids=["l1", "elastic net"])
def test_negative_weights_in_a_tree(make: Callable[[Any], blo.penalties.Penalty]) -> None:
    lower = blo.LowerProblem(lambda t, z: squares(t, z["w"]), penalty=make({"w": torch.tensor([-1.0, 1.0])}))
    with pytest.raises(ValueError, match=r"weight` must be at least 0, but 1 of 2"):
        blo.argmin(lower, torch.ones(2, requires_grad=True), {"w": torch.zeros(2)})


def test_an_empty_variable() -> None:
    for z0, batched in ((torch.zeros(0), False), (torch.zeros(0, 3), True)):
        with pytest.raises(blo.StructureError, match="`z0` must not be empty"):
            blo.argmin(blo.LowerProblem(squares, batched=batched), torch.ones(1, requires_grad=True), z0)


def test_an_objective_in_another_precision_leaves_that_of_z() -> None:
    lower = blo.LowerProblem(lambda t, z: squares(t.double(), z.double()))
    z = blo.argmin(lower, torch.ones(2, requires_grad=True), torch.zeros(2))
    assert z.dtype == torch.float32
    assert_near(z.detach().double(), torch.ones(2).double(), 1e-5)


def test_a_lower_variable_that_runs_off() -> None:
    algorithm = blo.SOBA(lower_step=1e200, upper_step=1e-3)
    state = algorithm.init(torch.ones(1), torch.ones(1))
    with pytest.raises(blo.NonFiniteError, match="after 8 steps"):
        run(algorithm, state, lambda t, z, b: z.sum(), lambda t, z, b: squares(t, z), steps=8)


def test_the_state_of_something_else_is_no_start_of_a_fit() -> None:
    lower, theta = blo.LowerProblem(squares), torch.ones(1)
    out = blo.value_and_hypergrad(lambda t, z: z.square().sum(), lower, theta, theta)
    with pytest.raises(blo.StructureError, match="of an earlier fit, but holds"):
        blo.fit(
            lambda t, z: z.square().sum(), lower, theta, theta, state=out.state, steps=1,
            optimizer=lambda leaves: torch.optim.SGD(leaves, lr=0.1),
        )  # fmt: skip


@pytest.mark.parametrize("strategy", [blo.ValueFunction(), blo.Unrolled(checkpoint=True)], ids=str)
def test_a_first_order_strategy_without_theta_or_with_nan(strategy: blo.gradients.Strategy) -> None:
    theta, z0 = torch.ones(2, requires_grad=True), torch.zeros(2)
    solver = blo.ProjectedGradient(0.5)
    z = blo.argmin(
        blo.LowerProblem(lambda t, z: squares(torch.ones(2), z)), theta, z0, solver=solver, gradient=strategy
    )
    with pytest.warns(blo.ConstantWarning, match="theta does not enter"):
        z.sum().backward()
    root = blo.LowerProblem(lambda t, z: squares((t - 1).sqrt() + z.sum() * 0, z))
    with pytest.raises(blo.NonFiniteError, match="the implicit part"):
        blo.argmin(root, theta, z0 + 3, solver=solver, gradient=strategy).sum().backward()


@pytest.mark.parametrize("strategy", [blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")], ids=str)
def test_transforms_reach_captured_tensors_under_every_mode_of_the_unroll(strategy: blo.gradients.Strategy) -> None:
    def solution(data: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: squares(t * data, z))
        z: Tensor = blo.argmin(
            lower, torch.ones(2), torch.zeros(2), solver=blo.ProjectedGradient(1.0), gradient=strategy
        )
        return z.sum()

    assert_near(torch.func.grad(solution)(torch.ones(2)).double(), torch.ones(2).double(), 1e-6)


@pytest.mark.parametrize(
    ("term", "truth"),
    [
        ({"constraint": lambda r: blo.L2Ball(r)}, 2**0.5),
        ({"constraint": lambda r: blo.Box(-r, r)}, 2.0),
        ({"penalty": lambda r: blo.L1(r)}, -2.0),
    ],
    ids=["ball", "box", "l1"],
)
def test_transforms_reach_what_a_moving_term_captures(term: dict[str, Callable[[Tensor], Any]], truth: float) -> None:
    ((name, make),) = term.items()

    def solution(r: Tensor) -> Tensor:
        captured: Any = {name: lambda theta: make(r)}
        lower = blo.LowerProblem(squares, **captured)
        z: Tensor = blo.argmin(lower, torch.full((2,), 5.0).double(), torch.zeros(2).double())
        return z.sum()

    r = torch.tensor(0.5, dtype=torch.float64)
    assert_near(torch.func.grad(solution)(r), truth, 1e-8)
    assert_near(
        torch.func.vmap(torch.func.grad(solution))(torch.stack([r, 2 * r])),
        torch.full((2,), truth, dtype=torch.float64),
        1e-8,
    )


def test_an_optimiser_does_not_write_into_the_hypergradient() -> None:
    def maker(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True, foreach=True)

    found = blo.fit(
        lambda t, z: z.square().sum(),
        blo.LowerProblem(squares),
        torch.ones(2),
        torch.zeros(2),
        optimizer=maker,
        steps=3,
    )
    out = found.hypergradient
    assert torch.equal(out.grad, out.direct + out.implicit)


AUTOCAST_TERMS: dict[str, dict[str, Any]] = {
    "free": {},
    "affine": {"constraint": lambda t: blo.Affine(torch.tensor([[1.0, 2.0, 0.5]]), t[:1])},
    "halfspaces": {"constraint": lambda t: blo.Halfspaces(torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]]), t[:2])},
    "smooth": {"constraint": blo.SmoothConstraints(inequalities=lambda z: (z.square().sum() - 0.5).reshape(1))},
    "l1": {"penalty": lambda t: blo.L1(t[0].exp())},
}


@pytest.mark.parametrize("name", AUTOCAST_TERMS)
def test_autocast_leaves_projections_and_linear_solves_alone(name: str) -> None:
    """The objective does no matrix products, so autocast changes nothing of it."""
    weights, theta = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, 0.2, -0.4])
    lower = blo.LowerProblem(lambda t, z: (weights * (z - t - 1).square()).sum(), **AUTOCAST_TERMS[name])

    def gradient() -> Tensor:
        point = theta.clone().requires_grad_()
        blo.argmin(lower, point, torch.zeros(3)).square().sum().backward()
        assert point.grad is not None
        return point.grad

    def evaluated(strategy: blo.gradients.Strategy) -> Tensor:
        grad: Tensor = blo.value_and_hypergrad(
            lambda t, z: z.square().sum(), lower, theta, torch.zeros(3), gradient=strategy
        ).grad
        return grad

    plain = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradient(), evaluated(blo.Implicit()), evaluated(blo.Implicit(products="finite-difference"))]
    for each in found:
        assert each.dtype == torch.float32
        torch.testing.assert_close(each, plain, rtol=2e-3, atol=2e-3)


def test_sets_are_made_in_full_precision() -> None:
    A, b = torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]]), torch.tensor([0.3, 0.2])
    with torch.autocast("cpu", torch.bfloat16):
        for feasible in (blo.Affine(A, b), blo.Halfspaces(torch.cat([A, -A]), torch.cat([b, 0.1 - b]))):
            lower = blo.LowerProblem(lambda t, z: (z - t).square().sum(), feasible)
            z = blo.argmin(lower, torch.ones(3, requires_grad=True), torch.zeros(3))
            assert (A.double() @ z.double() - b.double()).max() <= 1e-6


def test_autocast_acts_on_the_objective_and_differences_leave_it() -> None:
    torch.manual_seed(0)
    x, seen = torch.randn(40, 3), []

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        scores = x @ z
        seen.append(scores.dtype)
        return scores.float().cosh().mean() - theta @ z

    theta = torch.tensor([0.1, 0.2, 0.3])
    lower = blo.LowerProblem(objective)
    truth = blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, torch.zeros(3)).grad
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        for products in ("reverse", "finite-difference"):
            gradient = blo.Implicit(products=products)  # type: ignore[arg-type]
            out = blo.value_and_hypergrad(
                lambda t, z: z.sum(), lower, theta, torch.zeros(3), gradient=gradient, on_failure="ignore",
                solver=blo.ProjectedGradient(0.3, max_steps=60, tol=None),
            )  # fmt: skip
            torch.testing.assert_close(out.grad, truth, rtol=0.05, atol=0.05)
    assert set(seen) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    "term",
    [
        {},
        {"constraint": blo.L2Ball(0.5)},
        {"constraint": blo.Simplex(1.0)},
        {"constraint": blo.Affine(torch.ones(1, 3), torch.ones(1))},
        {"constraint": blo.Halfspaces(torch.ones(1, 3), torch.ones(1))},
        {"penalty": blo.L1(0.1)},
        {"penalty": blo.GroupLasso(0.1, torch.tensor([0, 0, 1]))},
    ],
    ids=["free", "ball", "simplex", "affine", "halfspaces", "l1", "group lasso"],
)
def test_single_precision_stays_single_whatever_the_default(term: dict[str, Any]) -> None:
    matrix = torch.eye(3) + 0.1
    lower = blo.LowerProblem(lambda t, z: 0.5 * z @ (matrix @ z) - t @ z, **term)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theta = torch.tensor([1.0, 2.0, 2.5], dtype=torch.float32)
        for solver in (None, blo.FISTA(), blo.ProjectedGradient()):
            z0 = torch.full((3,), 0.1, dtype=torch.float32)
            out = blo.value_and_hypergrad(lambda t, z: z.square().sum(), lower, theta, z0, solver=solver)
            assert out.z.dtype == out.grad.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_waits_do_not_grow_with_the_leaves_of_theta() -> None:
    lower = blo.LowerProblem(lambda t, z: squares(sum(t), z))
    options: dict[str, Any] = {"solver": blo.ProjectedGradient(1.0, max_steps=1, tol=None)}
    counts = []
    for leaves in (1, 20):
        with Accelerator() as accelerator:
            theta = [there(3)] * leaves
            blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, there(3), **options)
        counts.append(accelerator.waits)
    assert 0 < counts[0] == counts[1]
