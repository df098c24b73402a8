"""Nothing is silently wrong: every failure is an error or a warning, and shows in the report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from tests import oracles
from tests.integration.problems import EXACT, TIGHT, as_tensor, assert_near, hypergradient, solution

IMPLICIT = [EXACT, blo.Implicit(), blo.KKTClosedForm(), blo.HessianFree(1.0)]
NAN = float("nan")


def squares(theta: Tensor, z: Tensor) -> Tensor:
    """Return `1/2 |z - theta|^2` of each lane."""
    return 0.5 * (z - theta).square().sum(-1)


def total(theta: Tensor, z: Tensor) -> Tensor:
    return z.sum() + 0 * theta.sum()


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def evaluate(
    lower: blo.LowerProblem, theta: Tensor, z0: Tensor | None = None, upper: Any = total, **options: Any
) -> blo.Hypergradient:
    z0 = torch.zeros_like(theta) if z0 is None else z0
    return blo.value_and_hypergrad(upper, lower, theta, z0, **options)


# The lower solve stops early.

SHORT = blo.ProjectedGradient(step=0.05, max_steps=3, tol=1e-9)


def test_an_unconverged_lower_solve_warns_raises_or_is_silent_as_asked() -> None:
    case = oracles.draw("box", 4, 2, seed=1)
    with pytest.warns(blo.ConvergenceWarning, match="lower solve has not converged in 1 of 1"):
        out = hypergradient(case, solver=SHORT)
    with pytest.raises(blo.ConvergenceError, match="max_steps"):
        hypergradient(case, solver=SHORT, on_failure="raise")
    silent = hypergradient(case, solver=SHORT, on_failure="ignore")
    assert torch.equal(out.grad, silent.grad)
    z, box = out.z, case.constraint(case.start())
    residual = (z - (z - as_tensor(case.gradient(case.theta, z.numpy()))).clamp(box.low, box.high)).norm()
    assert out.report.lower_residual == pytest.approx(float(residual), rel=1e-12)
    assert out.report.lower_status is blo.Status.UNCONVERGED
    assert (out.report.lower_steps, out.report.ok) == (3, False)


def test_argmin_follows_the_same_policy() -> None:
    case = oracles.draw("box", 4, 2, seed=1)
    with pytest.warns(blo.ConvergenceWarning, match="lower solve"):
        solution(case, solver=SHORT)(case.start().requires_grad_())
    with pytest.raises(blo.ConvergenceError, match="lower solve"):
        solution(case, solver=SHORT, on_failure="raise")(case.start().requires_grad_())
    solution(case, solver=SHORT, on_failure="ignore")(case.start())


def test_a_theta_that_is_a_constant_is_told() -> None:
    case = oracles.draw("free", 3, 2, seed=1)
    with pytest.warns(blo.ConstantWarning, match="no leaf of `theta` requires grad"):
        assert not solution(case, on_failure="raise")(case.start()).requires_grad
    # No warning where nobody can expect a derivative.
    solution(case)(case.start().requires_grad_())
    solution(case, gradient=blo.Zero())(case.start())
    solution(case, on_failure="ignore")(case.start())
    with torch.no_grad():
        solution(case)(case.start())


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.vmap])
def test_transforms_do_not_silence_it(transform: Callable[..., Any]) -> None:
    case = oracles.draw("box", 4, 2, seed=1)
    theta = case.start().expand(2, -1) if transform is torch.vmap else case.start()
    solved = solution(case, solver=SHORT, on_failure="raise")
    with pytest.raises(blo.ConvergenceError, match="lower solve"):
        transform(lambda t: solved(t).sum())(theta)


def test_the_warning_counts_the_lanes_that_are_late() -> None:
    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * vector(1.0, 1e-6, 1.0, 1e-6) * (z - theta).square().sum(-1)

    lower = blo.LowerProblem(objective, batched=True)
    with pytest.warns(blo.ConvergenceWarning, match="in 2 of 4 problems"):
        evaluate(lower, vector(1.0), torch.zeros(4, 1).double(), solver=blo.ProjectedGradient(1.0, 5, 1e-9))


@pytest.mark.parametrize("gradient", IMPLICIT, ids=str)
def test_a_fixed_number_of_steps_that_ends_elsewhere_is_reported_by_implicit_strategies(
    gradient: blo.gradients.Strategy,
) -> None:
    lower = blo.LowerProblem(squares)
    solver = blo.ProjectedGradient(step=0.1, max_steps=2, tol=None)
    with pytest.warns(blo.ConvergenceWarning, match="lower solve"):
        out = evaluate(lower, vector(1.0), solver=solver, gradient=gradient)
    assert out.report.lower_status is blo.Status.UNCHECKED
    assert out.report.lower_residual == pytest.approx(0.81)
    evaluate(lower, vector(1.0), solver=solver, gradient=blo.Unrolled())  # differentiates what was computed
    evaluate(lower, vector(1.0), solver=solver, gradient=blo.Zero())


def test_an_external_solver_that_returns_no_solution_is_found_out() -> None:
    solver = blo.External(lambda theta, z0: z0 + 0.3)
    with pytest.warns(blo.ConvergenceWarning, match="lower solve"):
        out = evaluate(blo.LowerProblem(squares), vector(1.0), solver=solver)
    assert out.report.lower_residual == pytest.approx(0.7)


# The linear solve stops early, or rests on an assumption that does not hold.


def test_an_unconverged_linear_solve_is_reported() -> None:
    case = oracles.draw("free", 5, 2, seed=1)
    with pytest.warns(blo.ConvergenceWarning, match="linear solve has not converged in 1 of 1"):
        out = hypergradient(case, gradient=blo.Implicit(blo.CG(max_iter=1)))
    assert out.report.linear_status is blo.Status.UNCONVERGED
    assert (out.report.linear_iterations, out.report.ok) == (1, False)
    H, v = case.hessian(case.theta), case.cotangent(case.theta)
    q = v * (v @ v) / (v @ H @ v)  # one step of conjugate gradients
    truth = np.linalg.norm(v - H @ q) / np.linalg.norm(v)
    assert out.report.linear_residual == pytest.approx(truth, rel=1e-9)
    with pytest.raises(blo.ConvergenceError, match="max_iter"):
        hypergradient(case, gradient=blo.Implicit(blo.CG(max_iter=1)), on_failure="raise")


def test_the_closed_form_reports_a_hessian_that_is_no_multiple_of_the_identity() -> None:
    case = oracles.draw("free", 4, 2, seed=1)
    with pytest.warns(blo.ConvergenceWarning, match="linear solve"):
        out = hypergradient(case, gradient=blo.KKTClosedForm())
    assert out.report.linear_status is blo.Status.UNCONVERGED
    H, v = case.hessian(case.theta), case.cotangent(case.theta)
    away = H @ v - (v @ H @ v) / (v @ v) * v
    assert out.report.linear_residual == pytest.approx(np.linalg.norm(away) / np.linalg.norm(H @ v), rel=1e-9)


SADDLE = vector(1.0, -2.0)


def saddle(theta: Tensor, z: Tensor) -> Tensor:
    """Return `z_0^2 / 2 - z_1^2 + theta . z`, stationary at `(-theta_0, theta_1 / 2)`."""
    return 0.5 * (SADDLE * z.square()).sum() + (theta * z).sum()


@pytest.mark.parametrize("gradient", [EXACT, blo.Implicit()], ids=str)
def test_curvature_that_is_not_positive_on_the_tangent_space_is_reported(gradient: blo.gradients.Strategy) -> None:
    solver = blo.External(lambda theta, z0: -theta / SADDLE)
    with pytest.warns(blo.ConvergenceWarning, match="curvature is not positive on the tangent space in 1 of 1"):
        out = evaluate(blo.LowerProblem(saddle), vector(0.3, 0.4), solver=solver, gradient=gradient)
    assert out.report.linear_status is blo.Status.INDEFINITE
    assert not out.report.ok
    assert out.report.lower_status is blo.Status.CONVERGED
    with pytest.raises(blo.ConvergenceError, match="damping"):
        evaluate(blo.LowerProblem(saddle), vector(0.3, 0.4), solver=solver, gradient=gradient, on_failure="raise")


def test_the_closed_form_reports_a_concave_objective() -> None:
    lower = blo.LowerProblem(lambda theta, z: -squares(theta, z))
    with pytest.warns(blo.ConvergenceWarning, match="curvature is not positive"):
        out = evaluate(lower, vector(0.3), solver=blo.External(lambda theta, z0: theta), gradient=blo.KKTClosedForm())
    assert out.report.linear_status is blo.Status.INDEFINITE


@pytest.mark.parametrize("gradient", [EXACT, blo.Implicit()], ids=str)
def test_negative_curvature_across_an_active_bound_does_no_harm(gradient: blo.gradients.Strategy) -> None:
    lower = blo.LowerProblem(saddle, blo.Box(-1.0, 1.0))
    solver = blo.ProjectedGradient(step=0.1)
    out = evaluate(lower, vector(0.3, 0.4), vector(0.0, -0.5), solver=solver, gradient=gradient)
    assert_near(out.z, vector(-0.3, -1.0), 1e-6)
    assert_near(out.grad, vector(-1.0, 0.0), 1e-12)
    assert out.report.ok


# theta does not enter.


@pytest.mark.parametrize("gradient", [*IMPLICIT, blo.Unrolled()], ids=str)
@pytest.mark.parametrize("constraint", [blo.Free(), blo.L2Ball(0.5)], ids=["free", "ball"])
def test_theta_outside_the_lower_problem_has_no_implicit_part_and_says_so(
    constraint: blo.sets.Set, gradient: blo.gradients.Strategy
) -> None:
    lower = blo.LowerProblem(lambda theta, z: squares(vector(1.0, 2.0), z), constraint)

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (theta * z).sum()

    with pytest.warns(blo.ConstantWarning, match="theta does not enter"):
        out = evaluate(lower, vector(0.3, 0.4), upper=upper, gradient=gradient)
    assert not out.implicit.any() and torch.equal(out.grad, out.direct)
    assert not out.report.depends_on_theta
    assert out.report.implicit_norm == 0
    with pytest.raises(blo.ConvergenceError, match="theta does not enter"):
        evaluate(lower, vector(0.3, 0.4), upper=upper, gradient=gradient, on_failure="raise")
    evaluate(lower, vector(0.3, 0.4), upper=upper, gradient=gradient, on_failure="ignore")


def test_theta_in_the_set_alone_does_enter() -> None:
    lower = blo.LowerProblem(lambda theta, z: squares(vector(2.0), z), lambda theta: blo.Box(0.0, theta))
    out = evaluate(lower, vector(0.7))
    assert_near(out.grad, vector(1.0), 1e-12)
    assert out.report.depends_on_theta


def test_zero_does_not_expect_theta() -> None:
    evaluate(blo.LowerProblem(squares), vector(1.0), gradient=blo.Zero(), on_failure="raise")


# Parts in the wrong place.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": blo.CG()}, "`gradient` must be like blo.Implicit.*of type CG"),
        ({"gradient": blo.Implicit}, "`gradient` must be like .* the class Implicit"),
        ({"solver": blo.LBFGS}, "`solver` must be like .* the class LBFGS"),
        ({"solver": blo.Implicit()}, "`solver` must be like .* of type Implicit"),
        ({"lower": squares}, "`lower` must be like blo.LowerProblem.* of type function"),
    ],
    ids=range(5),
)
def test_parts_in_the_wrong_place_are_named(options: dict[str, Any], message: str) -> None:
    arguments = {"lower": blo.LowerProblem(squares), "theta": vector(1.0), "z0": vector(0.0)} | options
    with pytest.raises(blo.StructureError, match=message):
        blo.argmin(**arguments)
    with pytest.raises(blo.StructureError, match=message):
        blo.value_and_hypergrad(upper=total, **arguments)


def test_a_linear_solver_is_an_instance_of_one() -> None:
    for wrong in ("CG", blo.CG):
        with pytest.raises(blo.StructureError, match="`linear_solver` must be like blo"):
            blo.Implicit(wrong)  # type: ignore[arg-type]


# NaN and infinity.

BROKEN: dict[str, tuple[Any, Any, str]] = {
    "lower objective": (lambda t, z: squares(t, z) * NAN, total, "the lower solution"),
    "upper value": (squares, lambda t, z: total(t, z) + NAN, "the upper value"),
    "upper infinite": (squares, lambda t, z: total(t, z) / 0.0, "the upper value"),
    "upper slope in z": (squares, lambda t, z: (z - z.detach()).abs().sqrt().sum(), "the upper gradient in z"),
    "upper slope in theta": (squares, lambda t, z: z.sum() + (t - t.detach()).abs().sqrt().sum(), "the direct part"),
    "cross term": (lambda t, z: squares((t - t.detach()).abs().sqrt() + 1.0, z), total, "the implicit part"),
}


@pytest.mark.parametrize(("objective", "upper", "what"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("gradient", [*IMPLICIT, blo.Unrolled()], ids=str)
def test_what_is_not_finite_is_an_error_by_default(
    objective: Any, upper: Any, what: str, gradient: blo.gradients.Strategy
) -> None:
    options: dict[str, Any] = {"upper": upper, "solver": blo.ProjectedGradient(1.0), "gradient": gradient}
    for policy in (None, "raise"):
        with pytest.raises(blo.NonFiniteError, match=what):
            evaluate(blo.LowerProblem(objective), vector(1.0, 2.0), on_failure=policy, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warned = evaluate(blo.LowerProblem(objective), vector(1.0, 2.0), on_failure="warn", **options)
    assert any(what in str(item.message) and item.category is blo.ConvergenceWarning for item in caught)
    ignored = evaluate(blo.LowerProblem(objective), vector(1.0, 2.0), on_failure="ignore", **options)
    for out in (warned, ignored):
        assert not (torch.isfinite(out.grad).all() and torch.isfinite(out.value))  # nothing made up in its place


ORIGINS: dict[str, tuple[Any, Tensor, Tensor, str]] = {
    "z0": (squares, vector(1.0), vector(NAN), "start of the solver is not finite itself: `z0`"),
    "theta": (squares, vector(NAN), vector(0.0), "`theta` is not finite itself"),
    "data": (lambda t, z: squares(t * NAN, z), vector(1.0), vector(0.0), "no `step` will help"),
    "empty": (squares, vector(1.0), vector(2.0), "`SmoothConstraints` has no finite point nearest"),
    "step": (lambda t, z: squares(t, z) + z.pow(4).sum(), vector(1.0), vector(1.0), "Try a smaller `step`"),
}


@pytest.mark.parametrize(("objective", "theta", "z0", "origin"), ORIGINS.values(), ids=ORIGINS.keys())
def test_the_message_says_where_a_nan_comes_from(objective: Any, theta: Tensor, z0: Tensor, origin: str) -> None:
    empty = blo.SmoothConstraints(inequalities=lambda z: z.square().sum().reshape(1) + 1)
    lower = blo.LowerProblem(objective, empty if "nearest" in origin else blo.Free())
    solver = blo.ProjectedGradient(100.0)
    with pytest.raises(blo.NonFiniteError, match=origin):
        evaluate(lower, theta, z0, solver=solver)
    with pytest.raises(blo.NonFiniteError, match=origin):
        blo.argmin(lower, theta.requires_grad_(), z0, solver=solver, gradient=blo.Unrolled())


def test_the_message_names_a_set_whose_constraint_has_no_gradient_at_its_edge() -> None:
    cusp = blo.SmoothConstraints(inequalities=lambda z: z**3)
    with pytest.raises(blo.NonFiniteError, match=r"`SmoothConstraints` finds no point nearest.*may vanish"):
        evaluate(blo.LowerProblem(squares, cusp), vector(5.0), vector(-1.0))


def test_data_that_a_transform_reaches_is_not_taken_for_theta() -> None:
    theta, z0 = vector(1.0), vector(0.0)

    def captures(data: Tensor) -> Tensor:
        return blo.argmin(blo.LowerProblem(lambda t, z: squares(t * data, z)), theta, z0).sum()

    def passes(data: Tensor) -> Tensor:
        return blo.argmin(blo.LowerProblem(squares), data, z0).sum()

    with pytest.raises(blo.NonFiniteError, match="no `step` will help"):
        torch.func.grad(captures)(vector(NAN))
    with pytest.raises(blo.NonFiniteError, match="`theta` is not finite itself"):
        torch.func.grad(passes)(vector(NAN))


def test_warnings_point_at_the_line_that_called() -> None:
    """The default filter shows a message once a line, so all calls must not share one of the library's."""
    lower, theta = blo.LowerProblem(lambda t, z: z.square().sum()), vector(1.0).requires_grad_()
    calls: list[Callable[[], Any]] = [
        lambda: blo.argmin(lower, theta.detach(), theta.detach()),
        lambda: blo.argmin(lower, theta, theta.detach()).sum().backward(),
        lambda: blo.argmin(blo.LowerProblem(squares), theta, theta + 1, solver=SHORT),
        lambda: evaluate(lower, theta),
        lambda: blo.fit(total, lower, theta, theta, optimizer=torch.optim.Adam, steps=1),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [item.filename for item in caught] == [__file__]


@pytest.mark.parametrize("solver", [blo.ProjectedGradient(), blo.ProjectedGradient(1.0)], ids=["found", "given"])
def test_a_lower_solve_that_is_not_finite_has_its_status(solver: blo.ProjectedGradient) -> None:
    """With a step of its own finding the solver takes every step back and stays, finite, where it began."""
    lower = blo.LowerProblem(lambda t, z: squares(t, z) * NAN)
    with pytest.raises(blo.NonFiniteError, match="the lower solution"):
        evaluate(lower, vector(1.0), solver=solver, gradient=blo.Zero())
    out = evaluate(lower, vector(1.0), solver=solver, on_failure="ignore")
    assert out.report.lower_status is blo.Status.NON_FINITE
    assert out.report.linear_status is blo.Status.NON_FINITE
    assert not out.report.ok


@pytest.mark.parametrize("gradient", [EXACT, blo.Implicit(), blo.KKTClosedForm()], ids=str)
def test_a_second_derivative_that_is_not_finite_is_an_error(gradient: blo.gradients.Strategy) -> None:
    """The cross term is finite, and an adjoint of zero in place of none would pass unseen."""

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return squares(theta, z) + z.abs().pow(1.5).sum()  # its curvature at zero is infinite

    lower, solver = blo.LowerProblem(objective), blo.External(lambda theta, z0: z0)
    with pytest.raises(blo.NonFiniteError, match=r"the adjoint|the residual of the adjoint|the implicit part"):
        evaluate(lower, vector(0.0), vector(0.0), solver=solver, gradient=gradient)


def test_a_lane_that_is_not_finite_leaves_the_others_alone() -> None:
    theta, solver = vector(0.2, NAN, -0.7).unsqueeze(-1), blo.ProjectedGradient(0.5, max_steps=50)

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (theta * z).sum()

    for constraint in (blo.Free(), blo.L2Ball(0.5), blo.Box(-0.5, 0.5), blo.NonNegative()):
        for gradient in (*IMPLICIT, blo.Unrolled()):
            lower = blo.LowerProblem(squares, constraint, batched=True)
            options: dict[str, Any] = {"upper": upper, "solver": solver, "gradient": gradient}
            alone = evaluate(lower, theta[[0, 2]], **options)
            out = evaluate(lower, theta, on_failure="ignore", **options)
            assert torch.equal(out.z[[0, 2]], alone.z)
            assert_near(out.grad[[0, 2]], alone.grad, 1e-12)
            assert out.grad[1].isnan().all()
            assert out.report.lower_status is blo.Status.NON_FINITE
            with pytest.raises(blo.NonFiniteError, match="1 of 3 entries"):
                evaluate(lower, theta, **options)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap])
def test_transforms_do_not_hide_what_is_not_finite(transform: Callable[..., Any]) -> None:
    lower = blo.LowerProblem(squares)
    with pytest.raises(blo.NonFiniteError, match="the lower solution"):
        transform(lambda t: blo.argmin(lower, t.sum(), vector(0.0)).sum())(vector(1.0, NAN))


BACKWARD: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "backward": lambda f, t: f(t.requires_grad_()).backward(),
    "create_graph": lambda f, t: torch.autograd.grad(f(t.requires_grad_()), t, create_graph=True),
    "grad": lambda f, t: torch.func.grad(f)(t),
    "jacrev": lambda f, t: torch.func.jacrev(f)(t),
    "grad in vmap": lambda f, t: torch.vmap(torch.func.grad(f))(t.unsqueeze(0)),
    "vmap in grad": lambda f, t: torch.func.grad(lambda t: torch.vmap(f)(t.unsqueeze(0)).sum())(t),
}
ANY = {
    "implicit": blo.Implicit(),
    "hessian-free": blo.HessianFree(2.0),
    "value function": blo.ValueFunction(),
    "unrolled": blo.Unrolled(),
    "last": blo.Unrolled(last=1),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "start": blo.Unrolled(start=lambda theta: theta.sqrt()),
}


@pytest.mark.parametrize("gradient", ANY.values(), ids=ANY.keys())
@pytest.mark.parametrize("differentiate", BACKWARD.values(), ids=BACKWARD.keys())
def test_a_hypergradient_that_is_not_finite_is_an_error_wherever_it_is_taken(
    differentiate: Callable[..., Any], gradient: blo.gradients.Strategy
) -> None:
    """The solution is finite, its derivative is not: that of a root at 0."""
    lower = blo.LowerProblem(lambda t, z: (z - t.sqrt()).square().sum())

    def value(theta: Tensor) -> Tensor:
        z: Tensor = blo.argmin(lower, theta, torch.ones(2).double(), solver=blo.ProjectedGradient(), gradient=gradient)
        return z.square().sum() + z.sum()

    with pytest.raises(blo.NonFiniteError, match=r"the implicit part holds 2 of 2.*roots, norms"):
        differentiate(value, vector(0.0, 0.0))


# Strict complementarity fails.

DEGENERATE: dict[str, tuple[blo.sets.Set, Tensor, int]] = {
    "box": (blo.Box(0.0, 1.0), vector(0.0, 0.5, 1.0, -2.0), 2),
    "nonnegative": (blo.NonNegative(), vector(0.0, 0.5, 0.0, -2.0), 2),
    "ball": (blo.L2Ball(5.0), vector(3.0, 4.0), 1),
    "simplex": (blo.Simplex(1.0), vector(0.75, 0.25, 0.0, -3.0), 1),
    "product": (blo.Product(blo.L2Ball(5.0), blo.Simplex(1.0)), vector(3.0, 4.0, 1.0, 0.0), 2),
}


@pytest.mark.parametrize(("constraint", "theta", "count"), DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("gradient", IMPLICIT, ids=str)
def test_active_constraints_with_a_zero_multiplier_are_counted(
    constraint: blo.sets.Set, theta: Tensor, count: int, gradient: blo.gradients.Strategy
) -> None:
    def objective(theta: Tensor, z: Any) -> Tensor:
        return squares(theta, torch.cat(z) if isinstance(z, tuple) else z)

    def upper(theta: Tensor, z: Any) -> Tensor:
        return (theta * torch.cat(z)).sum() if isinstance(z, tuple) else (theta * z).sum()

    z0 = tuple(torch.zeros_like(theta).split(2)) if isinstance(constraint, blo.Product) else torch.zeros_like(theta)
    lower, solver = blo.LowerProblem(objective, constraint), blo.ProjectedGradient(1.0, tol=1e-12)
    with pytest.warns(blo.DegenerateWarning, match=f"{count} active constraints have a zero multiplier"):
        out = blo.value_and_hypergrad(upper, lower, theta, z0, solver=solver, gradient=gradient)
    assert out.report.degenerate == count
    assert not out.report.ok
    with pytest.raises(blo.ConvergenceError, match="strict complementarity"):
        blo.value_and_hypergrad(upper, lower, theta, z0, solver=solver, gradient=gradient, on_failure="raise")
    live = theta.clone().requires_grad_()
    with pytest.warns(blo.DegenerateWarning):
        upper(live, blo.argmin(lower, live, z0, solver=solver, gradient=gradient)).backward()
    assert_near(live.grad, out.grad, 1e-12)


def test_degenerate_lanes_add_up() -> None:
    theta = vector(0.0, 0.5, -1.0, 0.0).unsqueeze(-1)
    with pytest.warns(blo.DegenerateWarning, match="2 active"):
        out = evaluate(blo.LowerProblem(squares, blo.NonNegative(), batched=True), theta)
    assert (out.report.free, out.report.active, out.report.degenerate) == (1, 3, 2)


# Empty sets.


@pytest.mark.parametrize(
    "make",
    [
        lambda theta: blo.Box(theta, theta - 1.0),
        lambda theta: blo.Box.around(theta + 2.0, 0.1, 0.0, 1.0),
        lambda theta: blo.L2Ball(-theta.sum()),
        lambda theta: blo.Simplex(theta.sum() * 0.0),
        lambda theta: blo.Product(blo.Box(theta, theta - 1.0)),
    ],
    ids=["box", "around", "ball", "simplex", "product"],
)
def test_a_set_that_becomes_empty_is_refused(make: Callable[[Tensor], blo.sets.Set]) -> None:
    lower = blo.LowerProblem(squares, make)
    theta = vector(1.0, 2.0).requires_grad_()
    with pytest.raises(blo.InfeasibleError):
        evaluate(lower, theta)
    with pytest.raises(blo.InfeasibleError):
        blo.argmin(lower, theta, theta)


# Arguments that do not fit each other.

Z = torch.zeros(3, dtype=torch.float64)
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "objective is a vector": (
        {"objective": lambda t, z: (z - t).square()},
        r"`objective` must return a scalar tensor, here \(\), but returned \(3,\)",
    ),
    "objective is not a tensor": (
        {"objective": lambda t, z: 1.0},
        "`objective` must return a scalar tensor.*but returned float",
    ),
    "objective ignores z": ({"objective": lambda t, z: t.sum()}, "`objective` must depend on z"),
    "objective detaches z": ({"objective": lambda t, z: squares(t, z.detach())}, "`objective` must depend on z"),
    "fixed point is a scalar": (
        {"fixed": lambda t, z: 0.5 * z.sum() + t.sum()},
        r"`function\(theta, z\)` must return a tree like z, of shapes \[\(3,\)\], but returned shapes \[\(\)\]",
    ),
    "fixed point of another structure": (
        {"fixed": lambda t, z: {"b": z["a"]}, "z0": {"a": Z}},
        r"`function\(theta, z\)` must return a tree like z.*\['b'\].*where z has.*\['a'\]",
    ),
    "fixed point by conjugate gradients": (
        {"fixed": lambda t, z: 0.5 * z + t, "gradient": blo.Implicit(blo.CG())},
        "`CG` needs a symmetric operator.*`LowerProblem.fixed_point` is never symmetric.*`GMRES`",
    ),
    "batched objective is a scalar": (
        {"objective": lambda t, z: squares(t, z).sum(), "batched": True, "z0": Z.unsqueeze(-1)},
        r"`objective` must return a tensor of shape \(batch,\)",
    ),
    "batched objective keeps an axis": (
        {"objective": lambda t, z: (z - t).square(), "batched": True, "z0": Z.unsqueeze(-1)},
        r"here \(3,\), but returned \(3, 1\)",
    ),
    "batched z0 has no axis": ({"batched": True, "z0": torch.tensor(0.0)}, "`z0`"),
    "batched leaves disagree": ({"batched": True, "z0": (torch.zeros(3, 1), torch.zeros(2, 1))}, "`z0`"),
    "upper is a vector": ({"upper": lambda t, z: z}, r"`upper` must return a scalar.*shape \(3,\)"),
    "upper is not a tensor": ({"upper": lambda t, z: 1.0}, "`upper` must return a scalar tensor.*float"),
    "upper is constant": ({"upper": lambda t, z: z.detach().sum()}, "`upper` must depend on theta or z"),
    "theta is a number": ({"theta": 1.0}, "`theta` must hold tensors only.*float"),
    "theta is a module": ({"theta": torch.nn.Linear(1, 1)}, "`theta`.*Linear.*named_parameters"),
    "z0 is a number": ({"z0": 0.0}, "`z0` must hold tensors only"),
    "z0 is empty": ({"z0": ()}, "`z0` must hold at least one tensor"),
    "z0 is integer": ({"z0": torch.zeros(3, dtype=torch.int64)}, "`z0` must be floating point"),
    "z0 mixes precisions": ({"z0": (Z, Z.float())}, "`z0` must share dtype and device"),
    "constraint is not a set": ({"constraint": lambda t: 1.0}, "`constraint` must be a blo set.*float"),
    "bound of another shape": ({"constraint": blo.Box(torch.zeros(2).double(), 1.0)}, "`Box.low`"),
    "bound of another structure": ({"constraint": blo.Box(0.0, (Z, Z))}, "`Box.high` must have the structure"),
    "bound on another device": ({"constraint": blo.Box(0.0, Z.to("meta"), validate=False)}, "`Box.high`.*on meta"),
    "center of another shape": ({"constraint": blo.L2Ball(1.0, torch.zeros(2).double())}, "`L2Ball.center`"),
    "radius of another shape": ({"constraint": blo.L2Ball(torch.ones(2).double())}, "`L2Ball.radius`"),
    "radius on another device": (
        {"constraint": blo.L2Ball(Z.sum().to("meta"), validate=False)},
        "`L2Ball.radius`.*on meta",
    ),
    "total of another shape": ({"constraint": blo.Simplex(torch.ones(2).double())}, "`Simplex.total`"),
    "product of another length": ({"constraint": blo.Product(blo.Free(), blo.Free())}, "`Product` has 2 entries"),
    "external result of another shape": ({"solver": blo.External(lambda t, z: z[:2])}, "External's function"),
    "external result of another precision": ({"solver": blo.External(lambda t, z: z.float())}, "External's function"),
    "external result of another structure": ({"solver": blo.External(lambda t, z: (z,))}, "External's function"),
    "unrolled with external": (
        {"solver": blo.External(lambda t, z: z), "gradient": blo.Unrolled()},
        "`External` cannot be unrolled.*Implicit",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    given = {"objective": squares, "upper": total, "theta": vector(1.0), "z0": Z, "batched": False}
    given |= {"constraint": blo.Free(), "solver": None, "gradient": None} | changes
    if "fixed" in given:
        lower = blo.LowerProblem.fixed_point(given["fixed"])
    else:
        lower = blo.LowerProblem(given["objective"], given["constraint"], batched=given["batched"])
    with pytest.raises(blo.StructureError, match=message):
        blo.value_and_hypergrad(
            given["upper"], lower, given["theta"], given["z0"], solver=given["solver"], gradient=given["gradient"]
        )


@pytest.mark.parametrize("gradient", [blo.Implicit(), blo.Unrolled()], ids=str)
def test_an_objective_of_theta_alone_is_refused_where_theta_requires_grad(gradient: blo.gradients.Strategy) -> None:
    """Its value has a graph, which does not reach z."""
    lower, theta = blo.LowerProblem(lambda t, z: squares(t, z.detach())), vector(1.0).requires_grad_()
    with pytest.raises(blo.StructureError, match=r"`objective` must depend on z, but .* other tensors alone.*detach"):
        blo.argmin(lower, theta, Z, gradient=gradient)


def test_inference_mode_is_named() -> None:
    with torch.inference_mode(), pytest.raises(blo.StructureError, match=r"inference_mode.*torch.no_grad\(\)"):
        blo.argmin(blo.LowerProblem(squares), vector(1.0), Z + 0)


@pytest.mark.parametrize(
    "make",
    [blo.OneStep, blo.ProjectedGradient, lambda step: blo.FISTA(step=step), lambda step: blo.FixedPoint(step=step)],
)
def test_a_step_that_expects_a_gradient_is_refused(make: Callable[[Tensor], blo.solvers.Solver]) -> None:
    with pytest.raises(blo.StructureError, match=r"`step` must be a number.*requires grad.*step=lambda theta"):
        make(torch.tensor(0.1, requires_grad=True))


def test_an_external_solver_refuses_vmap() -> None:
    lower = blo.LowerProblem(squares)
    solver = blo.External(lambda theta, z0: theta)
    with pytest.raises(blo.StructureError, match="`External` cannot run under vmap"):
        torch.vmap(lambda theta: blo.argmin(lower, theta, vector(0.0), solver=solver))(Z.unsqueeze(-1))


@pytest.mark.parametrize("policy", ["error", "", True, "RAISE"])
def test_an_unknown_policy_is_refused(policy: Any) -> None:
    lower = blo.LowerProblem(squares)
    for call in (
        lambda: blo.argmin(lower, vector(1.0), vector(0.0), on_failure=policy),
        lambda: evaluate(lower, vector(1.0), on_failure=policy),
    ):
        with pytest.raises(ValueError, match=r"`on_failure` must be 'raise', 'warn' or 'ignore'"):
            call()


def test_every_error_and_warning_has_the_one_ancestor_and_a_familiar_one() -> None:
    for error, familiar in {
        blo.StructureError: ValueError,
        blo.InfeasibleError: ValueError,
        blo.NonFiniteError: ArithmeticError,
        blo.ConvergenceError: RuntimeError,
    }.items():
        assert issubclass(error, blo.BloError) and issubclass(error, familiar)
    for warning in (blo.ConvergenceWarning, blo.DegenerateWarning, blo.ConstantWarning):
        assert issubclass(warning, blo.BloWarning) and issubclass(warning, UserWarning)


def test_nothing_is_measured_when_failures_are_ignored() -> None:
    """The counts and the residual of an unconverged, degenerate problem cost nothing unless they are read."""
    lower = blo.LowerProblem(squares, blo.NonNegative())
    solver = blo.ProjectedGradient(1.0, max_steps=1, tol=None)
    out = evaluate(lower, vector(0.0, 1.0), solver=solver, on_failure="ignore")
    assert not set(vars(out.report)) & {"_counts", "lower_residual", "linear_status"}
    assert out.report.degenerate == 1
    assert TIGHT.tol is not None


def test_an_objective_without_a_minimum_is_named_as_one() -> None:
    falling = blo.LowerProblem(lambda theta, z: -squares(theta, z).exp())
    with pytest.raises(blo.NonFiniteError, match=r"unbounded below.*bound z by a constraint"):
        evaluate(falling, vector(1.0, 2.0))
