"""Advice in messages about solves that did not converge and values that are not finite."""

LOOK = "Run the objective under torch.autograd.detect_anomaly."
SMALLER = "Try a smaller `step`, or look at the objective with torch.autograd.detect_anomaly."
#: For a solver that chooses its steps, after a start where everything is finite.
ASTRAY = (
    "Theta, the start and the gradient there are finite. So the objective is unbounded below, or its gradient is not "
    "finite on the solver's path: bound z by a constraint, or run the objective under torch.autograd.detect_anomaly."
)
#: For a derivative that is not finite although the solution is.
STEEP = (
    "The solution is finite, so a derivative in the backward pass is not: look for roots, norms, logarithms and powers "
    "evaluated at 0, and run the objective under torch.autograd.detect_anomaly."
)
SINGULAR = (
    "The curvature is singular on the tangent space, or nearly, and the upper gradient has a component in directions "
    "without curvature: the point is not an isolated minimiser, and its derivative may not exist. Add a proximal term "
    "to the objective, or `damping` to the linear solver."
)
BIND = (
    "Bind the data of each problem to its own objective, `lambda theta, z, data=data: ...`, instead of a loop "
    "variable, a buffer that is refilled or a seed that is drawn anew; or call .backward() before they change."
)
EARLY = (
    "Raise `max_steps`, change `step`, choose another solver (`MirrorDescent` for an entropy on a simplex), or "
    "differentiate with Unrolled()."
)
FLOOR = (
    "More steps do not help: the residual is at the rounding of the gradient, in the precision in which the objective "
    "is computed. Use float64 or no autocast, scale z so that its curvatures differ less, or set a larger `tol`."
)
STUCK = (
    "The residual there fell by less than a tenth in 128 steps, so the solve stopped: the map does not contract, or "
    "very slowly. Try `relaxation` below 1, another `memory` or start, or keep the map's Lipschitz constant below 1, "
    "for example by spectral normalisation."
)
RANDOM = (
    "`objective` must be a function of theta and z, but two evaluations of its gradient at one point differ{lanes}: it "
    "draws random numbers, or reads data that change. No solver can converge, and no hypergradient exists. For "
    "a module with dropout use blo.functionalize; draw a minibatch outside the objective, or use the algorithms of "
    "blo.stochastic, which are made for noise."
)


def remedy_of(method: str) -> str:
    """Return advice for a linear solver, named in a report, that has not converged."""
    if "Direct" in method:  # more effort does not help a factorisation
        return SINGULAR
    if "Neumann" in method or "Nystrom" in method:
        return "Raise `terms` (Neumann), `rank` (Nystrom) or `damping`, or use CG()."
    if not method:  # the system was solved by a division
        return "Use Implicit(), which assumes nothing about the curvature."
    return "Raise `max_iter`, add `damping`, or use Direct()."
