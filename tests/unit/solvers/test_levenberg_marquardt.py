"""Sums of squares: the damped Gauss-Newton method against SciPy, and derivatives against the whole Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import blo
from blo import LevenbergMarquardt, LowerProblem
from blo._torch import forward_mode
from tests import oracles
from tests.lower import Counted, solve
from tests.strategies import normal

TIGHT = LevenbergMarquardt(tol=1e-12, max_steps=300)
TIMES = torch.linspace(0.0, 2.0, 15, dtype=torch.float64)
DATA = 2.0 * (-1.3 * TIMES).exp() + 0.3 + 0.05 * normal(0, 15)
THETA = torch.tensor([0.2, -0.3], dtype=torch.float64)
START = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


def decay(theta: Tensor, z: Tensor) -> Tensor:
    """Return how far `z0 exp(-z1 t) + z2` is from data that theta shifts, beside a ridge: residuals that stay."""
    fit = z[0] * (-z[1] * TIMES).exp() + z[2] - DATA - theta[0] * TIMES.sin()
    return torch.cat([fit, 0.3 * theta[1].exp() * z])


def objective(theta: Tensor, z: Tensor) -> Tensor:
    return 0.5 * decay(theta, z).square().sum()


def with_scipy(
    residual: Callable[[Tensor], Tensor], start: Tensor, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> np.ndarray:
    jacobian = torch.func.jacrev(residual)
    found = scipy.optimize.least_squares(
        lambda z: residual(torch.as_tensor(z)).numpy(),
        start.numpy(),
        jac=lambda z: jacobian(torch.as_tensor(z)).numpy(),
        bounds=bounds,
        method="trf",
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=2000,
    )
    z: np.ndarray = found.x
    return z


@pytest.mark.parametrize("products", ["reverse", "forward"])
@pytest.mark.parametrize("linear_solver", [blo.Auto(), blo.CG(tol=1e-13), blo.Direct()], ids=lambda s: type(s).__name__)
def test_it_ends_where_scipy_does(products: Any, linear_solver: blo.linsolve.LinearSolver) -> None:
    solver = LevenbergMarquardt(tol=1e-12, linear_solver=linear_solver, products=products)
    found = solve(LowerProblem.least_squares(decay), START, solver, THETA)
    np.testing.assert_allclose(found.z, with_scipy(lambda z: decay(THETA, z), START), rtol=0, atol=1e-8)
    assert found.residual is not None and found.residual <= 1e-12 and found.steps <= 30
    slope = torch.func.grad(objective, argnums=1)(THETA, found.z)
    assert slope.norm() <= 1e-12


@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
def test_linear_residuals_have_a_closed_form(damping: float) -> None:
    matrix, b = normal(1, 30, 8), normal(2, 30)
    lower = LowerProblem.least_squares(lambda theta, z: matrix @ z - b)
    found = solve(lower, torch.zeros(8).double(), LevenbergMarquardt(tol=1e-12, damping=damping))
    np.testing.assert_allclose(found.z, np.linalg.lstsq(matrix.numpy(), b.numpy(), rcond=None)[0], rtol=0, atol=1e-11)
    assert found.steps <= {0.0: 2, 1e-3: 8, 10.0: 20}[damping]


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -5.0], [-20.0, 30.0]], ids=str)
def test_steps_that_lead_uphill_are_damped(start: list[float]) -> None:
    """Rosenbrock's valley: Gauss-Newton steps without damping rise by powers of ten on the way."""
    z0 = torch.tensor(start, dtype=torch.float64)
    lower = LowerProblem.least_squares(lambda theta, z: torch.stack([10 * (z[1] - z[0] ** 2), 1 - z[0]]))
    for damping in (1e-3, 0.0):
        found = solve(lower, z0, LevenbergMarquardt(tol=1e-12, damping=damping, max_steps=200))
        np.testing.assert_allclose(found.z, [1.0, 1.0], rtol=0, atol=1e-10)


def test_where_the_jacobian_loses_its_rank_it_ends_all_the_same() -> None:
    """Powell's singular function: J'J is singular at the solution, where steps halve the error at most."""

    def residual(theta: Tensor, z: Tensor) -> Tensor:
        ends = 5**0.5 * (z[2] - z[3]), (z[1] - 2 * z[2]) ** 2, 10**0.5 * (z[0] - z[3]) ** 2
        return torch.stack([z[0] + 10 * z[1], *ends])

    z0 = torch.tensor([3.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    found = solve(LowerProblem.least_squares(residual), z0, LevenbergMarquardt(tol=1e-12, max_steps=200))
    assert found.z.abs().max() < 1e-3 and found.steps < 60


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (-0.3, 0.5), (-np.inf, 0.5)])
def test_bounds(low: float, high: float) -> None:
    matrix, b = normal(3, 20, 6), normal(4, 20, scale=2.0)

    def residual(z: Tensor) -> Tensor:
        return torch.cat([matrix @ z - b, 0.5 * z.sin()])

    start = torch.full((6,), 0.4, dtype=torch.float64)
    box = blo.NonNegative() if (low, high) == (0.0, np.inf) else blo.Box(low, high)
    found = solve(LowerProblem.least_squares(lambda theta, z: residual(z), box), start, TIGHT)
    truth = solve(LowerProblem(lambda theta, z: 0.5 * residual(z).square().sum(), box), start, blo.LBFGS(tol=1e-12))
    assert ((found.z == low) | (found.z == high)).any() and ((found.z > low) & (found.z < high)).any()
    torch.testing.assert_close(found.z, truth.z, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.z, with_scipy(residual, start, (low, high)), rtol=0, atol=1e-5)  # an inner method


def test_lanes_have_their_own_damping_and_stopping() -> None:
    scale = torch.tensor([0.3, 1.0, 8.0], dtype=torch.float64)

    def residual(scale: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def at(theta: Tensor, z: Tensor) -> Tensor:
            valley = torch.stack([10 * (z[..., 1] - scale * z[..., 0] ** 2), 1 - z[..., 0]], -1)
            return valley.unsqueeze(-1) if z.ndim > 1 else valley  # residuals of any shape

        return at

    z0 = torch.tensor([[-1.2, 1.0], [2.0, 0.0], [0.5, 3.0]], dtype=torch.float64)
    together = solve(LowerProblem.least_squares(residual(scale), batched=True), z0, TIGHT)
    steps = []
    for lane in range(3):
        alone = solve(LowerProblem.least_squares(residual(scale[lane])), z0[lane], TIGHT)
        torch.testing.assert_close(together.z[lane], alone.z, rtol=0, atol=1e-11)
        steps.append(alone.steps)
    assert abs(max(steps) - together.steps) <= 1 and min(steps) < together.steps


def test_many_unknowns_take_conjugate_gradients_and_few_evaluations() -> None:
    """A chain of 300 unknowns: no matrix is made, and a step evaluates the residuals twice."""
    calls = Counted(lambda z: torch.cat([z[1:] - z[:-1], 0.3 * (z.exp() - 2.0)]))
    lower = LowerProblem.least_squares(lambda theta, z: calls(z))
    found = solve(lower, torch.zeros(300).double(), LevenbergMarquardt(tol=1e-11))
    torch.testing.assert_close(found.z, torch.full((300,), np.log(2.0), dtype=torch.float64), rtol=0, atol=1e-9)
    assert found.steps <= 10 and calls.calls <= 2 * found.steps + 10


HYPER = blo.Implicit(blo.Direct())


def hypergradient(gradient: blo.gradients.Strategy, lower: LowerProblem | None = None) -> Tensor:
    lower = LowerProblem.least_squares(decay) if lower is None else lower
    out = blo.value_and_hypergrad(
        lambda t, z: (z - 1).square().sum(), lower, THETA, START, solver=TIGHT, gradient=gradient
    )
    return out.grad


@pytest.mark.parametrize(
    "gradient", [HYPER, blo.Implicit(products="forward"), blo.Implicit(blo.CG(tol=1e-13))], ids=str
)
def test_the_hypergradient_has_the_whole_hessian(gradient: blo.gradients.Strategy) -> None:
    def value(theta: np.ndarray) -> np.ndarray:
        at = torch.as_tensor(theta)
        z = solve(LowerProblem.least_squares(decay), START, TIGHT, at).z
        return np.array([(z - 1).square().sum()])

    truth = oracles.central_difference(value, THETA.numpy())[0]
    np.testing.assert_allclose(hypergradient(gradient), truth, rtol=0, atol=1e-8)


def test_the_gauss_newton_hessian_is_an_approximation_by_name() -> None:
    """In closed form `-B' (J'J)^-1 v`, off by the curvature of residuals that do not vanish."""
    z = solve(LowerProblem.least_squares(decay), START, TIGHT, THETA).z
    J = torch.func.jacrev(decay, argnums=1)(THETA, z)
    B = torch.func.jacrev(torch.func.grad(objective, argnums=1))(THETA, z)
    H = torch.func.jacrev(torch.func.grad(objective, argnums=1), argnums=1)(THETA, z)
    rough = -B.T @ torch.linalg.solve(J.T @ J, 2 * (z - 1))
    exact = -B.T @ torch.linalg.solve(H, 2 * (z - 1))
    assert (rough - exact).norm() > 1e-3 * exact.norm()
    for linear_solver in (blo.Direct(), blo.CG(tol=1e-13)):
        found = hypergradient(blo.Implicit(linear_solver, hessian="gauss-newton"))
        torch.testing.assert_close(found, rough, rtol=0, atol=1e-10)
    torch.testing.assert_close(hypergradient(HYPER), exact, rtol=0, atol=1e-9)


def test_of_linear_residuals_it_is_exact_and_differentiated_twice() -> None:
    matrix, b = normal(5, 12, 4), normal(6, 12)
    lower = LowerProblem.least_squares(lambda theta, z: torch.cat([matrix @ z - b, theta.exp() * z]), batched=False)

    def value(theta: Tensor, gradient: blo.gradients.Strategy) -> Tensor:
        z = blo.argmin(lower, theta, torch.zeros(4).double(), solver=TIGHT, gradient=gradient)
        return (z - 1).square().sum()

    def closed(theta: Tensor) -> Tensor:
        system = matrix.T @ matrix + torch.diag((2 * theta).exp())
        return (torch.linalg.solve(system, matrix.T @ b) - 1).square().sum()

    theta = 0.3 * normal(7, 4)
    for gradient in (HYPER, blo.Implicit(blo.Direct(), hessian="gauss-newton")):
        for derivative in (torch.func.grad, lambda f: torch.func.jacrev(torch.func.grad(f))):
            found = derivative(lambda t, g=gradient: value(t, g))(theta)
            torch.testing.assert_close(found, derivative(closed)(theta), rtol=0, atol=1e-9)
        each = torch.vmap(torch.func.grad(lambda t, g=gradient: value(t, g)))(torch.stack([theta, 2 * theta]))
        torch.testing.assert_close(each[1], torch.func.grad(closed)(2 * theta), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "gradient", [blo.Unrolled(), blo.Unrolled(checkpoint=True), blo.Unrolled(mode="forward")], ids=str
)
@pytest.mark.parametrize("products", ["reverse", "forward"])
def test_unrolled_is_the_derivative_of_its_steps(gradient: blo.Unrolled, products: Any) -> None:
    solver = LevenbergMarquardt(3, None, products=products)
    lower = LowerProblem.least_squares(decay)

    def final(theta: Tensor, gradient: blo.gradients.Strategy) -> Tensor:
        z: Tensor = blo.argmin(lower, theta, START, solver=solver, gradient=gradient)
        return z

    truth = oracles.central_difference(lambda t: final(torch.as_tensor(t), blo.Zero()).numpy(), THETA.numpy(), 1e-4)
    live = THETA.clone().requires_grad_()
    rows = [torch.autograd.grad(final(live, gradient)[i], live)[0] for i in range(3)]
    np.testing.assert_allclose(torch.stack(rows), truth, rtol=0, atol=1e-7)


def test_captured_tensors_of_transforms_are_differentiated() -> None:
    matrix, b = normal(5, 12, 4), normal(6, 12)

    def value(b: Tensor) -> Tensor:
        lower = LowerProblem.least_squares(lambda theta, z: matrix @ z - theta * b)
        z = blo.argmin(lower, torch.ones(()).double(), torch.zeros(4).double(), solver=TIGHT, gradient=HYPER)
        return z.square().sum()

    found = torch.func.grad(value)(b)
    pinv = torch.linalg.pinv(matrix)
    torch.testing.assert_close(found, 2 * pinv.T @ pinv @ b, rtol=0, atol=1e-9)


def test_single_precision_stays_single() -> None:
    lower = LowerProblem.least_squares(lambda theta, z: decay(theta, z).float())
    found = solve(lower, START.float(), LevenbergMarquardt(tol=1e-4), THETA.float())
    assert found.z.dtype == torch.float32
    np.testing.assert_allclose(found.z, with_scipy(lambda z: decay(THETA, z), START), rtol=0, atol=2e-3)


def test_other_problems_are_refused() -> None:
    lower = LowerProblem(lambda theta, z: z.square().sum())
    with pytest.raises(blo.StructureError, match=r"Use LowerProblem.least_squares\(residual\)"):
        solve(lower, START, LevenbergMarquardt())
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    plain = LowerProblem(lambda t, z: (z - t).square().sum())
    z = blo.argmin(plain, theta, START, gradient=blo.Implicit(hessian="gauss-newton"))
    with pytest.raises(blo.StructureError, match=r"Use LowerProblem.least_squares\(residual\)"):
        z.sum().backward()


def test_other_sets_are_refused() -> None:
    with pytest.raises(blo.StructureError, match="`LevenbergMarquardt` needs a set that bounds each coordinate"):
        solve(LowerProblem.least_squares(decay, blo.Simplex()), START, LevenbergMarquardt(), THETA)


@pytest.mark.parametrize(
    ("residual", "batched", "message"),
    [
        (lambda theta, z: (z, z), False, "returned tuple"),
        (lambda theta, z: z.to(torch.complex128), False, "view_as_real"),
        (lambda theta, z: z.sum(0), True, r"of shape \(2, '...'\)"),
    ],
    ids=["a tuple", "complex", "no batch"],
)
def test_residuals_of_another_kind_are_refused(residual: Any, batched: bool, message: str) -> None:
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(blo.StructureError, match="`residual` must return a real tensor") as caught:
        solve(LowerProblem.least_squares(residual, batched=batched), z0, LevenbergMarquardt())
    assert caught.match(message)


@pytest.mark.parametrize("residual", [3, lambda z: z, lambda z, theta: z], ids=["a number", "z alone", "z first"])
def test_what_is_no_residual_is_refused(residual: Any) -> None:
    with pytest.raises(blo.StructureError, match="`residual`"):
        LowerProblem.least_squares(residual)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"tol": 0.0}, "`tol` must be positive"),
        ({"damping": -1.0}, "`damping` must be at least 0"),
        ({"damping": float("nan")}, "`damping` must be at least 0"),
        ({"products": "finite-difference"}, "`products` must be 'reverse' or 'forward'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(**options)


def test_parts_in_each_others_places_are_refused() -> None:
    with pytest.raises(blo.StructureError, match="`linear_solver` must be like"):
        LevenbergMarquardt(linear_solver=blo.Implicit())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`hessian` must be 'full' or 'gauss-newton'"):
        blo.Implicit(hessian="fisher")  # type: ignore[arg-type]


def test_the_gauss_newton_hessian_is_multiplied_as_products_say() -> None:
    """The cross term alone evaluates the residuals once in forward mode, or not at all."""

    def evaluations(products: Any) -> int:
        seen: list[bool] = []

        def residual(theta: Tensor, z: Tensor) -> Tensor:
            seen.append(forward_mode())
            return decay(theta, z)

        lower = LowerProblem.least_squares(residual)
        gradient = blo.Implicit(blo.CG(tol=1e-13), products=products, hessian="gauss-newton")
        z = solve(lower, START, TIGHT, THETA).z
        seen.clear()
        out = blo.value_and_hypergrad(
            lambda t, z: (z - 1).square().sum(), lower, THETA, z, solver=blo.Given(), gradient=gradient
        )
        found.append(out.grad)
        return sum(seen)

    found: list[Tensor] = []
    assert evaluations("reverse") == 0
    assert evaluations("forward") > 3
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="hessian='gauss-newton' needs exact products"):
        blo.Implicit(products="finite-difference", hessian="gauss-newton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_residuals_in_half_precision_are_squared_in_single_precision(dtype: torch.dtype) -> None:
    """The squares of these residuals exceed the largest number of float16, and bfloat16 would round their sum."""
    matrix, wanted = 0.1 * normal(1, 40, 3).float() + 1, torch.linspace(300.0, 900.0, 40)
    network = torch.nn.Linear(3, 40).to(dtype)

    def cast(theta: Tensor, z: Tensor) -> Tensor:
        return (matrix @ (theta * z) - wanted).to(dtype)

    def under_autocast(theta: Tensor, z: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return matrix @ (theta * z) - wanted.to(dtype)

    def of_a_network(theta: Tensor, z: Tensor) -> Tensor:
        found: Tensor = network((theta * z).to(dtype)) - wanted.to(dtype)
        return found

    at, z0 = torch.ones(()), torch.ones(3)
    for residual in (cast, under_autocast, of_a_network):
        value = LowerProblem.least_squares(residual).objective(at, z0)
        half = residual(at, z0)
        assert half.dtype == dtype and value.dtype == torch.float32
        truth = 0.5 * half.detach().double().square().sum()
        torch.testing.assert_close(value.detach().double(), truth, rtol=1e-6, atol=0)

    # The residuals vanish at the solution, where half precision rounds them to less and less.
    goal = torch.tensor([200.0, 300.0, 400.0])
    lower = LowerProblem.least_squares(lambda t, z: matrix @ (t * z - goal))
    theta = torch.ones((), requires_grad=True)
    with torch.autocast("cpu", dtype):
        z = blo.argmin(lower, theta, z0, solver=LevenbergMarquardt(max_steps=200), on_failure="raise")
    torch.testing.assert_close(z.detach(), goal, rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(z.sum(), theta)  # z = goal / theta
    assert float(slope) == pytest.approx(-900, rel=0.05)


def test_a_problem_in_half_precision_has_values_in_single_precision() -> None:
    lower = LowerProblem.least_squares(lambda t, z: t * z - 500)
    z0, theta = torch.zeros(4, dtype=torch.float16), torch.ones((), dtype=torch.float16)
    assert float(lower.objective(theta, z0)) == 0.5 * 4 * 500**2
    descent = blo.ProjectedGradient(step=0.5, max_steps=30, tol=None)
    out = blo.value_and_hypergrad(
        lambda t, z: z.float().mean(), lower, theta, z0, solver=descent, gradient=blo.Unrolled()
    )
    assert float(out.value) == 500 and float(out.grad) == pytest.approx(-500, rel=1e-2)
