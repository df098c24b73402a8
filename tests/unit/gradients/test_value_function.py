"""The estimator from first derivatives alone: its bias is of the stated order in the penalty."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import TIGHT, assert_near, hypergradient
from tests.oracles import Array, QuadraticCase
from tests.strategies import quadratic_cases

quick = settings(deadline=None, max_examples=10)
PRECISE = blo.ProjectedGradient(tol=1e-14, max_steps=20_000)


def error(case: QuadraticCase, gradient: blo.ValueFunction) -> float:
    found = hypergradient(case, gradient=gradient, solver=PRECISE, on_failure="ignore").implicit
    return float(np.abs(found.numpy() - case.implicit(case.theta)).max())


@pytest.mark.parametrize(("two_sided", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("kind", ["ball"])
def test_the_bias_falls_with_the_power_of_the_penalty_that_is_stated(kind: str, two_sided: bool, order: int) -> None:
    """On a curved boundary, since on flat faces a quadratic problem has no bias at all."""
    case = oracles.draw("ball", 4, 3, seed=2, moving=True)
    assert case.solve(case.theta).multipliers.size
    errors = [error(case, blo.ValueFunction(penalty, two_sided=two_sided)) for penalty in (1e2, 1e3)]
    assert errors[0] > 1e-7
    assert abs(np.log10(errors[0] / errors[1]) - order) < 0.15


@quick
@given(quadratic_cases())
def test_it_tends_to_the_exact_implicit_part_on_every_set(case: QuadraticCase) -> None:
    size = 1 + np.abs(case.implicit(case.theta)).max()
    assert error(case, blo.ValueFunction(1e4, two_sided=True)) < 2e-6 * size


def test_no_second_derivative_is_taken() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * x * g

    lower = blo.LowerProblem(lambda t, z: 0.5 * (t.exp() * Once.apply(z - 1)).sum() + 0.5 * z.square().sum())
    theta = torch.tensor([0.3, -0.5]).double()
    out = blo.value_and_hypergrad(
        lambda t, z: z.square().sum(),
        lower,
        theta,
        torch.zeros(2).double(),
        solver=TIGHT,
        gradient=blo.ValueFunction(1e4),
    )
    weight = theta.exp()
    z = weight / (1 + weight)
    assert_near(out.grad, 2 * z * weight / (1 + weight).square(), 1e-3)


def test_it_works_under_backward_and_transforms() -> None:
    case = oracles.draw("box", 4, 3, seed=1)
    strategy = blo.ValueFunction(1e4, two_sided=True)

    def value(theta: Tensor) -> Tensor:
        z = blo.argmin(case.lower(), theta, case.z0(), solver=PRECISE, gradient=strategy, on_failure="ignore")
        return case.upper(theta, z)

    theta = case.start().requires_grad_()
    value(theta).backward()  # type: ignore[no-untyped-call]
    truth = case.hypergradient(case.theta)
    assert theta.grad is not None
    assert_near(theta.grad, truth, 1e-6)
    assert_near(torch.func.grad(value)(case.start()), truth, 1e-6)
    assert_near(torch.func.vmap(torch.func.grad(value))(case.start().expand(2, 3))[1], truth, 1e-6)


def test_the_penalty_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`penalty` must be positive"):
        blo.ValueFunction(0.0)


UNITS = [1.0, 1e-2, 1e-4, 1e-6]
LOOSE: list[blo.solvers.Solver | None] = [
    None,
    blo.LBFGS(tol=1e-3),
    blo.ProjectedGradient(tol=1e-3),
    blo.Newton(tol=1e-3),
    blo.FISTA(tol=1e-3),
]


def quartic(
    unit: float, dtype: torch.dtype, solver: blo.solvers.Solver | None, gradient: blo.ValueFunction, **options: str
) -> blo.Hypergradient:
    """`g = z'Az/2 - theta b'z + sum z^4 / 4`, `f = unit |z - c|^2 / 2`."""
    A, b, c = torch.tensor([[1.0, 2.0, 4.0], [1.0, -1.0, 2.0], [0.3, 0.2, 0.1]], dtype=dtype)
    return blo.value_and_hypergrad(
        lambda t, z: unit * 0.5 * (z - c).square().sum(),
        blo.LowerProblem(lambda t, z: (0.5 * A * z.square() - t * b * z + 0.25 * z.pow(4)).sum()),
        torch.tensor(1.0, dtype=dtype),
        torch.zeros(3, dtype=dtype),
        solver=solver,
        gradient=gradient,
        **options,  # type: ignore[arg-type]
    )


def quartic_solution() -> Array:
    """Return the real roots of `z^3 + A z = b`."""
    roots = [np.roots([1.0, 0.0, a, -s]) for a, s in ((1.0, 1.0), (2.0, -1.0), (4.0, 2.0))]
    return np.array([float(one[np.abs(one.imag) < 1e-9][0].real) for one in roots])


def quartic_truth(unit: float) -> float:
    """Return `unit (z - c)' H^-1 b`."""
    A, b, c = np.array([[1.0, 2.0, 4.0], [1.0, -1.0, 2.0], [0.3, 0.2, 0.1]])
    z = quartic_solution()
    return float(unit * (z - c) @ (b / (A + 3 * z**2)))


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("solver", LOOSE, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("unit", UNITS)
def test_a_loose_tolerance_and_a_small_unit_of_the_upper_objective_do_no_harm(
    unit: float, solver: blo.solvers.Solver | None, two_sided: bool
) -> None:
    out = quartic(unit, torch.float64, solver, blo.ValueFunction(two_sided=two_sided), on_failure="raise")
    assert float(out.grad) == pytest.approx(quartic_truth(unit), rel=5e-3)
    assert out.report.ok


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_in_single_precision_it_is_right_or_says_that_it_is_not(unit: float, two_sided: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = quartic(unit, torch.float32, None, blo.ValueFunction(two_sided=two_sided))
    right = abs(float(out.grad) / quartic_truth(unit) - 1) < 5e-3
    assert right or [one.category for one in caught] == [blo.ConvergenceWarning]
    assert out.report.ok == (not caught)
    # In units of the upper over the lower objective, the penalty is as large as ever.
    relative = quartic(
        unit, torch.float32, None, blo.ValueFunction(1e3 * unit, two_sided=two_sided), on_failure="raise"
    )
    assert float(relative.grad) == pytest.approx(quartic_truth(unit), rel=5e-3)


@pytest.mark.parametrize(
    "solver",
    [
        blo.OneStep(0.1),
        blo.ProjectedGradient(0.1, 5, tol=None),
        blo.External(lambda t, z0: torch.as_tensor(quartic_solution())),
    ],
    ids=["one step", "a few steps", "blind to the tilt"],
)
def test_solves_that_do_not_see_the_tilt_are_reported(solver: blo.solvers.Solver) -> None:
    with pytest.warns(blo.ConvergenceWarning, match="in 1 of 1 problems tilted for `ValueFunction`"):
        out = quartic(1.0, torch.float64, solver, blo.ValueFunction())
    assert not out.report.ok
    with pytest.raises(blo.ConvergenceError):
        quartic(1.0, torch.float64, solver, blo.ValueFunction(), on_failure="raise")


def test_the_backward_pass_reports_the_lanes_that_are_loose() -> None:
    scales = torch.tensor([1.0, 0.0, 0.0])  # where v is zero nothing is asked of the solve
    lower = blo.LowerProblem(lambda t, z: ((z - t).square() + z.square()).sum(-1), batched=True)
    blind = blo.External(lambda t, z0: (t / 2).expand_as(z0))
    theta = torch.full((2,), 0.5, requires_grad=True)
    z = blo.argmin(lower, theta, torch.zeros(3, 2), solver=blind, gradient=blo.ValueFunction())
    with pytest.warns(blo.ConvergenceWarning, match="in 1 of 3 problems tilted"):
        (scales * z.square().sum(-1)).sum().backward()


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("unit", [1e-12, 1e-4, 1.0, 65536.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_scales_with_the_upper_objective(dtype: torch.dtype, unit: float, two_sided: bool) -> None:
    """A scaled loss must neither be lost in rounding nor lead so far away that the solution bends."""
    out = quartic(unit, dtype, None, blo.ValueFunction(two_sided=two_sided), on_failure="raise")
    assert float(out.grad) == pytest.approx(quartic_truth(unit), rel=1e-3 if two_sided else 1e-2)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("unit", [1e-3, 1e6, 1e9])
def test_a_strong_force_on_a_curved_boundary_hides_no_error(unit: float, two_sided: bool) -> None:
    """The projection shortens the residual of a tilt, here to a millionth, and so it shortens that of an error."""

    def found(unit: float, strategy: blo.gradients.Strategy) -> blo.Hypergradient:
        theta, w = (torch.tensor(x, dtype=torch.float64) for x in ([0.6, 0.5, -0.5], [1.0, 2.0, -1.0]))
        lower = blo.LowerProblem(lambda t, z: unit * (z.square() - t * z + z.pow(4)).sum(), blo.L2Ball(0.1))
        solver = blo.ProjectedGradient(tol=1e-12)
        return blo.value_and_hypergrad(
            lambda t, z: w @ z, lower, theta, torch.zeros_like(w), solver=solver, gradient=strategy, on_failure="ignore"
        )

    out, truth = found(unit, blo.ValueFunction(two_sided=two_sided)), found(1.0, blo.Implicit()).grad
    right = bool((out.grad - truth).abs().max() < 0.01 * truth.abs().max())
    assert right or not out.report.ok
    assert right or unit > 1e8


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("slope", [0.0, 1e-3])  # on the bend, which is alike on both sides, and beside it
def test_a_solution_that_bends_under_the_tilt_is_reported(slope: float, two_sided: bool) -> None:
    """`z = 1 + asinh(k theta) / k`, which turns within 1/k, less than the tilt would move z."""
    k = 1e3
    lower = blo.LowerProblem(lambda t, z: ((k * (z - 1)).cosh() / k**2 - t * (z - 1)).sum())
    theta, z0 = torch.tensor([slope], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    strategy = blo.ValueFunction(1.0, two_sided=two_sided)
    with pytest.warns(blo.ConvergenceWarning, match="does not respond linearly"):
        out = blo.value_and_hypergrad(
            lambda t, z: z.sum(), lower, theta, z0, gradient=strategy, solver=blo.Newton(tol=1e-12)
        )
    assert not out.report.ok
    assert abs(float(out.grad) * (1 + (k * slope) ** 2) ** 0.5 - 1) > 0.1
