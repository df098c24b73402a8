"""The defects, as replacements of source text, each with the tests that are to notice it."""

from __future__ import annotations

from dataclasses import dataclass

LINSOLVE = "tests/unit/linsolve/"
UNIT = "tests/unit/gradients/"
WHOLE = "tests/integration/"
CG = "blo/linsolve/_cg.py"
BALL = "blo/sets/_l2ball.py"


@dataclass(frozen=True)
class Patch:
    """One replacement.

    Attributes:
        path: file below the checkout.
        old: text that occurs there exactly once.
        new: what takes its place.
    """

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One defect.

    Attributes:
        name: what is wrong.
        patches: how it is made.
        tests: what is run; at least one of them must fail.
    """

    name: str
    patches: tuple[Patch, ...]
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "CG returns the iterate before convergence",
        (
            Patch(CG, "running = ~zero & (rr > goal)", "before, running = x, ~zero & (rr > goal)"),
            Patch(CG, "q = apply(p)", "q, before = apply(p), x"),
            Patch(CG, "return LinearSolution(size * x", "return LinearSolution(size * before"),
        ),
        (LINSOLVE + "test_base.py::test_the_solution_is_the_one_numpy_finds",),
    ),
    Mutation(
        "CG takes its direction from the old residual",
        (
            Patch(CG, "q = apply(p)", "q, old = apply(p), r"),
            Patch(CG, "p = _move(p, torch.addcmul(z,", "p = _move(p, torch.addcmul(old,"),
        ),
        (LINSOLVE + "test_cg.py::test_it_takes_no_more_steps_than_unknowns",),
    ),
    Mutation(
        "CG has its damping in the step but not in the residual",
        (
            Patch(CG, "q = apply(p)", "q, plain = apply(p), operator(p)"),
            Patch(CG, "torch.addcmul(r, step, q, value=-1)", "torch.addcmul(r, step, plain, value=-1)"),
        ),
        (LINSOLVE + "test_base.py::test_damping_is_in_the_step_and_in_the_residual",),
    ),
    Mutation(
        "a scalar unknown takes no iteration",
        (
            Patch(
                CG,
                "for index in range(self.max_iter):",
                "for index in range(min(self.max_iter, b.shape[-1] ** 2 - 1)):",
            ),
        ),
        (LINSOLVE + "test_base.py::test_shapes",),
    ),
    Mutation(
        "the second derivative is cut off",
        (
            Patch(
                "blo/gradients/_function.py",
                "q = Adjoint.solve(ctx.problem, leaves, z, v, ctx.rule)",
                "q = Adjoint.solve(ctx.problem, leaves, z, v, ctx.rule).detach()",
            ),
        ),
        (WHOLE + "test_higher_order.py::test_the_hessian_of_the_value_function[free]",),
    ),
    Mutation(
        "the curvature K of a ball is dropped",
        (
            Patch(
                BALL,
                "projector, -slope / torch.where(norm > 0, norm, 1.0), count",
                "projector, 0.0, count",
            ),
        ),
        (UNIT + "test_products.py::test_inside_transforms[ball-grad-reverse]",),
    ),
    Mutation(
        "the mask comes after the solve",
        (
            Patch("blo/operators.py", "image = self.operator(inside)", "image = self.operator(v)"),
            Patch(
                "blo/operators.py",
                "image = tangent.project(image)\n",
                "pass\n",
            ),
            Patch(
                "blo/gradients/_stationary.py",
                "found = self.invert(system, _inside(tangent, v / size), guess)",
                "found = self.invert(system, v / size, guess)\n"
                "        found = replace(found, x=tangent.project(found.x))",
            ),
        ),
        (WHOLE + "test_identities.py::test_5_the_implicit_gradient_is_that_of_the_kkt_system",),
    ),
    Mutation(
        "a NaN is replaced by zero",
        (
            Patch(
                "blo/_autodiff.py",
                "return list(torch.autograd.grad(values, inputs, directions, retain_graph=not last, "
                "allow_unused=True))",
                "found = torch.autograd.grad(values, inputs, directions, retain_graph=not last, allow_unused=True)\n"
                "    return [None if part is None else part.nan_to_num() for part in found]",
            ),
        ),
        (WHOLE + "test_failures.py::test_what_is_not_finite_is_an_error_by_default",),
    ),
    Mutation(
        "the settings of the linear solver are not forwarded",
        (
            Patch(
                "blo/gradients/_implicit.py",
                "self.linear_solver.solve(system, b, guess)",
                "type(self.linear_solver)().solve(system, b, guess)",
            ),
        ),
        (UNIT + "test_stationary.py::test_damping_is_that_of_a_heavier_hessian",),
    ),
    Mutation(
        "an inactive inequality counts as active (ball)",
        (
            Patch(BALL, "norm.detach() >= radius - self.slack - self._rounding(z)", "norm >= 0 * radius"),
            Patch(BALL, "active = near & ~clear(distance, pressed, self.slack)", "active = near"),
        ),
        (WHOLE + "test_identities.py::test_6_constraints_that_do_not_bind_change_nothing",),
    ),
    Mutation(
        "an inactive inequality counts as active (box)",
        (Patch("blo/sets/_box.py", "clear(z - self.low, gradient, self.slack) &", "(z < self.low) &"),),
        (WHOLE + "test_identities.py::test_6_constraints_that_do_not_bind_change_nothing",),
    ),
    Mutation(
        "of two bounds that are near, the lower one moves z",
        (Patch("blo/sets/_box.py", "0.5 * (1 + push)", "0.0"),),
        ("tests/unit/sets/test_box.py::test_of_two_bounds_that_are_near_that_one_moves_z_which_holds_it",),
    ),
    Mutation(
        "all rows that are near hold the solution",
        (Patch("blo/sets/_hold.py", "touched | found.active | ~found.solved", "touched | near"),),
        ("tests/unit/sets/test_halfspaces.py::test_rows_that_depend_on_each_other_have_a_derivative_beside_their_tie",),
    ),
    Mutation(
        "rows that theta parts are not counted",
        (
            Patch(
                "blo/gradients/_strained.py", "degenerate=counts.degenerate + surplus", "degenerate=counts.degenerate"
            ),
        ),
        ("tests/unit/sets/test_halfspaces.py::test_rows_that_theta_parts_are_degenerate_where_they_tie",),
    ),
    Mutation(
        "constraints are looked for no further than the slack, whatever residual the solver accepted",
        (Patch("blo/_bound.py", "term.loosened(2 * left) if left <= self.accuracy else term", "term"),),
        (WHOLE + "test_near_boundaries.py::test_a_constraint_holds_a_solution_that_its_solver_left_beside_it",),
    ),
    Mutation(
        "a central difference is divided by 2 and multiplied by h",
        (
            Patch(
                "blo/gradients/_difference_point.py",
                "at_rest.gradient(self._z - h * direction).detach()) / (2 * h)",
                "at_rest.gradient(self._z - h * direction).detach()) / 2 * h",
            ),
        ),
        (UNIT + "test_products.py::test_products_are_those_of_dense_matrices[finite-difference]",),
    ),
)
