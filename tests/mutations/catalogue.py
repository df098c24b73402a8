"""The defects, as replacements of source text, each with the tests that are to notice it."""

from __future__ import annotations

from dataclasses import dataclass

LINSOLVE = "tests/unit/linsolve/"
UNIT = "tests/unit/gradients/"
WHOLE = "tests/integration/"
CG = "blo/linsolve/_cg.py"
CONJUGATE = "blo/linsolve/_conjugate.py"
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
            Patch(CONJUGATE, "    running = rr > goal\n", "    before, running = x, rr > goal\n"),
            Patch(CONJUGATE, "q = apply(p)\n        bend", "q, before = apply(p), x\n        bend"),
            Patch(
                CONJUGATE,
                "Ended(x, r, p, q, rr, running, indefinite, t",
                "Ended(before, r, p, q, rr, running, indefinite, t",
            ),
        ),
        (LINSOLVE + "test_base.py::test_the_solution_is_the_one_numpy_finds",),
    ),
    Mutation(
        "CG takes its direction from the old residual",
        (
            Patch(CONJUGATE, "q = apply(p)\n        bend", "q, old = apply(p), r\n        bend"),
            Patch(CONJUGATE, "p = torch.addcmul(z,", "p = torch.addcmul(old,"),
        ),
        (LINSOLVE + "test_cg.py::test_it_takes_no_more_steps_than_unknowns",),
    ),
    Mutation(
        "CG has its damping in the step but not in the residual",
        (Patch(CG, "x, rhs, self.damping, space)", "x, rhs, 0.0, space)"),),
        (LINSOLVE + "test_base.py::test_damping_is_in_the_step_and_in_the_residual",),
    ),
    Mutation(
        "a scalar unknown takes no iteration",
        (Patch(CG, "goal, self.max_iter)", "goal, min(self.max_iter, b.shape[-1] ** 2 - 1))"),),
        (LINSOLVE + "test_base.py::test_shapes",),
    ),
    Mutation(
        "CG returns its last iterate where the operator is indefinite",
        (Patch(CG, "lost = indefinite | (rr", "lost = (indefinite & False) & (rr"),),
        (LINSOLVE + "test_cg.py::test_an_indefinite_lane_is_not_worse_than_zero",),
    ),
    Mutation(
        "a singular system is left to the factorisation",
        (
            Patch(
                "blo/linsolve/_direct.py",
                "taken = (flat & (left <= limit)) | ~(residual <= left)",
                "taken = ~good & False",
            ),
        ),
        (LINSOLVE + "test_direct.py::test_little_curvature_in_another_unit_is_no_flat_direction",),
    ),
    Mutation(
        "data that change before the backward pass go unnoticed",
        (
            Patch(
                "blo/_solving.py",
                "        self.checks.changed(self.last, optimality",
                "        lambda: self.checks.changed(self.last, optimality",
            ),
        ),
        (WHOLE + "test_late_data.py::test_a_module_that_is_reseeded_is_reported",),
    ),
    Mutation(
        "an approximation by choice is ok at any residual",
        (
            Patch(
                "blo/_report.py",
                "return bool(linear.converged(_SOLVED).all())",
                "return bool(linear.converged(None).all())",
            ),
        ),
        ("tests/unit/test_report.py::test_an_approximation_by_choice_is_ok_where_its_residual_is",),
    ),
    Mutation(
        "the second derivative is cut off",
        (
            Patch(
                "blo/gradients/_implicit_part.py",
                "q = Adjoint.of(rule, problem, leaves, z, v)",
                "q = Adjoint.of(rule, problem, leaves, z, v).detach()",
            ),
        ),
        (WHOLE + "test_higher_order.py::test_the_hessian_of_the_value_function[free]",),
    ),
    Mutation(
        "the curvature K of a ball is dropped",
        (
            Patch(
                BALL,
                "return Tangent(projector, curvature, count, ",
                "return Tangent(projector, 0.0, count, ",
            ),
        ),
        (UNIT + "test_products.py::test_inside_transforms[ball-grad-reverse]",),
    ),
    Mutation(
        "the multiplier of a ball is that of the squared norm",
        (Patch(BALL, "torch.where(point, euclidean_norm(gradient), -slope)", "curvature"),),
        ("tests/unit/test_duals.py::test_the_multipliers_satisfy_the_kkt_conditions[single-l2 ball]",),
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
                "found = self.invert(system, b, guess)",
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
        "free coordinates do not make up for what moving bounds change of a ball's norm",
        (
            Patch(
                "blo/sets/_cut_face.py",
                "return step, shift, cut.radius - self.cut.radius - taken",
                "return step, shift, cut.radius - self.cut.radius",
            ),
        ),
        ("tests/unit/sets/test_cut.py::test_the_face_moves_with_radius_centre_and_bounds",),
    ),
    Mutation(
        "a step along the largest coordinate is taken into a bound",
        (Patch("blo/solvers/_direction.py", "if blocked is not None", "if False"),),
        ("tests/unit/solvers/test_direction.py::test_a_coordinate_that_a_bound_stops_leaves_the_step_to_the_next",),
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
        (
            Patch(
                "blo/_problem_at_theta.py", "if term.loosened(2 * float(plain(left).max())) is not term:", "if False:"
            ),
        ),
        (WHOLE + "test_near_boundaries.py::test_a_constraint_holds_a_solution_that_its_solver_left_beside_it",),
    ),
    Mutation(
        "and as far as that residual, whatever the curvature",
        (Patch("blo/_problem_at_theta.py", "left / curved.clamp(min=1.0), 0.0", "left, 0.0"),),
        (WHOLE + "test_units.py::test_a_large_multiplier_beside_a_bound_is_a_short_way_where_the_curvature_is_large",),
    ),
    Mutation(
        "a bound holds what its multiplier pulls away from it",
        (Patch("blo/_multipliers.py", " | (multiplier < 0)", ""),),
        (
            "tests/unit/sets/test_box.py::test_a_solver_that_stops_on_a_bound_within_its_tolerance_does_not_hold_it_there",
        ),
    ),
    Mutation(
        "a central difference is divided by 2 and multiplied by h",
        (
            Patch(
                "blo/_displacement.py",
                "return (ahead - behind) / (2 * h), ",
                "return (ahead - behind) / 2 * h, ",
            ),
        ),
        (UNIT + "test_products.py::test_products_are_those_of_dense_matrices[finite-difference]",),
    ),
    Mutation(
        "a rank's share of the gradient is taken for the gradient of the mean over ranks",
        (
            Patch(
                "blo/distributed/_linear.py",
                "= SumOverRanks.of(ctx.ranks, [*_filled(cotangents, ctx.kinds), counts], ties)",
                "= [*_filled(cotangents, ctx.kinds), counts]",
            ),
        ),
        (WHOLE + "test_distributed.py::test_two_and_three_processes_find_what_one_finds_on_all_the_data",),
    ),
    Mutation(
        "a rank that fails tells no other",
        (Patch("blo/distributed/_mean.py", "if ranks.host:  # otherwise", "if False:  # otherwise"),),
        (WHOLE + "test_distributed.py::test_a_rank_that_fails_or_goes_its_own_way_is_an_error_on_all",),
    ),
    Mutation(
        "a root at zero has an infinite derivative",
        (
            Patch(
                "blo/solvers/_optimizers.py",
                "return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())",
                "return x**0.5",
            ),
        ),
        (
            "tests/unit/solvers/test_torch_opt.py::test_where_a_gradient_is_exactly_zero_the_derivative_is_that_of_"
            "central_differences[adam-reverse]",
        ),
    ),
    Mutation(
        "the tilted solve keeps the tolerance of the solver",
        (Patch("blo/_solving.py", "min(solver.tol, max(float(plain(wanted.detach()).min()), least))", "solver.tol"),),
        (UNIT + "test_value_function.py::test_a_loose_tolerance_and_a_small_unit_of_the_upper_objective_do_no_harm",),
    ),
    Mutation(
        "the displacement of a central difference is not adapted",
        (Patch("blo/_displacement.py", "_ROUNDS, _FEW = 4, 100", "_ROUNDS, _FEW = 0, 100"),),
        (UNIT + "test_products.py::test_a_steep_objective_gets_a_shorter_displacement_and_an_honest_estimate",),
    ),
    Mutation(
        "what an optimiser makes a constant is not looked at",
        (Patch("blo/solvers/_torch_opt.py", "if mode.constants:", "if False:"),),
        ("tests/unit/solvers/test_torch_opt.py::test_clipping_that_autograd_does_not_see_is_refused",),
    ),
    Mutation(
        "a generator that the objective holds is no reason to evaluate twice",
        (Patch("blo/_solving.py", "drawn = watched and self._may_draw", "drawn = False"),),
        (WHOLE + "test_random_objectives.py::test_noise_that_vanishes_at_the_solution_is_seen_at_the_start",),
    ),
    Mutation(
        "a run that goes straight on has settled",
        (Patch("blo/stochastic/_watch.py", "if not straight:", "if True:"),),
        ("tests/unit/stochastic/test_convergence.py::test_steps_that_lead_nowhere_are_named",),
    ),
    Mutation(
        "SABA never sums its mean anew",
        (Patch("blo/stochastic/_saba.py", "if (k + 1) % len(rows) == 0:", "if k < 0:"),),
        (
            "tests/unit/stochastic/test_convergence.py::"
            "test_saba_in_single_precision_forgets_the_rounding_of_its_first_gradients",
        ),
    ),
    Mutation(
        "complex leaves of theta are taken for data",
        (Patch("blo/_theta.py", "tuple(leaf.is_complex() for leaf in leaves)", "tuple(False for leaf in leaves)"),),
        (WHOLE + "test_complex.py::test_parts_add_up_to_the_gradient[CG]",),
    ),
    Mutation(
        "weight_norm keeps the second derivative of torch",
        (Patch("blo/_layers.py", "v * (g / torch.norm_except_dim(v, 2, dim))", "torch._weight_norm(v, g, dim)"),),
        ("tests/unit/test_layers.py::test_derivatives_are_those_of_the_value",),
    ),
    Mutation(
        "evaluations draw from the default generators",
        (Patch("blo/_streams.py", '**{**kwargs, "generator": stream}', '**{**kwargs, "generator": default}'),),
        ("tests/unit/test_replay.py::test_two_threads_with_dropout_get_the_masks_of_their_seeds",),
    ),
    Mutation(
        "generators of a module move with each evaluation",
        (Patch("blo/_replay.py", "            _put_back(own)", "            _put_back(())"),),
        ("tests/unit/test_replay.py::test_a_generator_of_the_module_is_read_and_moves_on_with_the_next_step",),
    ),
    Mutation(
        "a block that ends before a later one puts back what was there before itself",
        (Patch("blo/_swaps.py", "if blocks[-1] is not block:", "if blocks[-1] is None:"),),
        ("tests/unit/test_swaps.py::test_overlapping_evaluations_leave_the_kernels_of_attention_as_they_were",),
    ),
    Mutation(
        "re-entrant checkpoints in objectives stay what they are",
        (Patch("blo/_checkpoints.py", "= staticmethod(_apply)", "= CheckpointFunction.apply"),),
        ("tests/integration/test_checkpoints.py::test_the_hypergradient_is_that_without_a_checkpoint",),
    ),
    Mutation(
        "objectives are not looked into for operations that torch differentiates otherwise",
        (Patch("blo/_look.py", "[graphs(value) for value in values]", "[[None] for value in values]"),),
        ("tests/integration/test_plain_modules.py::test_the_hypergradient_is_that_of_the_value",),
    ),
    Mutation(
        "no flag is ever on, so third derivatives of a layer norm are those of torch",
        (Patch("blo/_flag.py", "token = self._value.set(True)", "token = self._value.set(False)"),),
        (WHOLE + "test_third_derivatives.py::test_third_derivatives_of_the_value_function",),
    ),
    Mutation(
        "nobody looks whether a module computes with what it writes to its buffers",
        (Patch("blo/_functionalize.py", "if stale.found:", "if stale is None:"),),
        ("tests/unit/test_layers.py::test_a_buffer_that_takes_a_derivative_along_is_named",),
    ),
    Mutation(
        "first-order strategies keep the graph of their backward pass",
        (Patch("blo/gradients/_value_function.py", "gap, inputs,", "gap, inputs, retain_graph=True,"),),
        ("tests/integration/test_checkpoints.py::test_first_derivatives_keep_no_graph",),
    ),
    Mutation(
        "a re-entrant checkpoint is not looked for",
        (Patch("blo/_watch.py", "if frame.f_code is code:", "if frame is code:"),),
        (
            "tests/unit/test_layers.py::test_reentrant_checkpoints_are_refused_around_the_call_and_left_out_inside_the_module",
        ),
    ),
    Mutation(
        "a module may write to its parameters",
        (Patch("blo/_watch.py", "if key in self._parameters:", "if key is self._parameters:"),),
        ("tests/unit/test_layers.py::test_writes_to_parameters_are_refused_before_they_are_made",),
    ),
    Mutation(
        "spectral norms make power iterations at each evaluation",
        (
            Patch(
                "blo/_functionalize.py",
                "return self._run(parameters, inputs, keywords, targets, iterate=False)",
                "return self._run(parameters, inputs, keywords, targets, iterate=True)",
            ),
        ),
        ("tests/unit/test_layers.py::test_derivatives_are_those_of_the_value",),
    ),
    Mutation(
        "gradients in a theta coarser than z are subtracted in its own precision",
        (Patch("blo/gradients/_finer.py", "if not any(coarse(leaf, z.dtype)", "if all(coarse(leaf, z.dtype)"),),
        (WHOLE + "test_low_precision.py::test_differences_bear_a_theta_that_is_coarser_than_z",),
    ),
    Mutation(
        "a solve with a tolerance is made under autocast",
        (Patch("blo/_parts.py", "(solver.tol is None or not problem.runs", "(solver.tol != 0 or not problem.runs"),),
        (WHOLE + "test_low_precision.py::test_a_solve_with_a_tolerance_is_made_and_differentiated_without_autocast",),
    ),
    Mutation(
        "the tilt of ValueFunction grows with the upper objective",
        (
            Patch(
                "blo/gradients/_value_function.py",
                "torch.minimum(torch.maximum(tilt, root * change), far * change)",
                "tilt",
            ),
        ),
        (UNIT + "test_value_function.py::test_it_scales_with_the_upper_objective",),
    ),
    Mutation(
        "an objective that is not a function is taken for one",
        (Patch("blo/solvers/_stopping.py", "return ~(drift > _REPEATED *", "return ~(drift > torch.inf *"),),
        (WHOLE + "test_random_objectives.py::test_draws_from_the_global_generator_are_named",),
    ),
    Mutation(
        "no curvature is looked for beyond the largest",
        (Patch("blo/_curvature.py", "_LOOKS = 2", "_LOOKS = 1"),),
        (WHOLE + "test_units.py::test_a_residual_within_tolerance_hides_no_error",),
    ),
    Mutation(
        "points of others need not be solutions in their unit",
        (Patch("blo/_solving.py", "if last is None or confirmed or", "if last is not None or confirmed or"),),
        (WHOLE + "test_units.py::test_points_that_no_solver_has_confirmed_are_looked_at",),
    ),
    Mutation(
        "a report is ok where the same call warned of fixed steps",
        (
            Patch(
                "blo/_report.py", "not (self.degenerate or loose or self._elsewhere)", "not (self.degenerate or loose)"
            ),
        ),
        (WHOLE + "test_units.py::test_points_that_no_solver_has_confirmed_are_looked_at",),
    ),
    Mutation(
        "a solve that uses its very last step is not confirmed",
        (
            Patch(
                "blo/solvers/_iterative.py",
                "steps == self.max_steps or not all",
                "steps == self.max_steps and not all",
            ),
        ),
        ("tests/unit/solvers/test_iterative.py::test_a_solve_that_uses_its_very_last_step_is_confirmed_too",),
    ),
)
