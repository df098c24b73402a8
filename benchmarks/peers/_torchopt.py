"""torchopt: a custom root with its conjugate gradients."""

from __future__ import annotations

import warnings

import torch
import torchopt
from torch import Tensor

from benchmarks.boxed import Boxed
from benchmarks.peers._base import Prepared
from benchmarks.smooth import Smooth
from benchmarks.unrolled import Cleaning, descend

# It uses names that torch has moved since.
warnings.filterwarnings("ignore", category=FutureWarning, module="torchopt")

NAME = "torchopt"
DISTRIBUTION = "torchopt"
METHOD = "custom_root, solve_cg"
ITERATES = True


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return the hypergradient through `custom_root`, whose solver returns the known solution."""

    def lower(z: Tensor, theta: Tensor) -> Tensor:
        return problem.inner(theta, z)

    # With `rtol=0` it makes all iterations, unless the residual is zero.
    linear = torchopt.linear_solve.solve_cg(maxiter=products, rtol=0.0, ridge=damping or None)

    @torchopt.diff.implicit.custom_root(torch.func.grad(lower, argnums=0), argnums=1, solve=linear)  # type: ignore[untyped-decorator]
    def solve(z: Tensor, theta: Tensor) -> Tensor:
        return problem.z.detach().clone().requires_grad_()

    start = torch.zeros_like(problem.z)

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        problem.outer(theta, solve(start, theta)).backward()
        assert theta.grad is not None
        return theta.grad

    return Prepared(run, lambda found: found)


def prepare_boxed(problem: Boxed, products: int) -> Prepared:
    """Return the hypergradient of the box problems: the fixed point of a projected step, and CG on its normal equation.

    The batch is one long vector, because its linear solvers have no lanes. It solves the normal equation, because the
    Jacobian of the fixed point is not symmetric.
    """

    def optimality(z: Tensor, theta: Tensor) -> Tensor:
        slope = torch.func.grad(lambda at: problem.inner(theta, at).sum())(z)
        moved: Tensor = z - (z - slope).clamp(-1.0, 1.0)
        return moved

    linear = torchopt.linear_solve.solve_normal_cg(maxiter=products, rtol=0.0)

    @torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=linear)  # type: ignore[untyped-decorator]
    def solve(z: Tensor, theta: Tensor) -> Tensor:
        return problem.z.detach().clone().requires_grad_()

    start = torch.zeros_like(problem.z)

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        problem.outer(theta, solve(start, theta)).backward()
        assert theta.grad is not None
        return theta.grad

    return Prepared(run, lambda found: found)


def prepare_unrolled(problem: Cleaning, steps: int) -> Prepared:
    """Return the derivative of this many steps of its functional optimiser."""
    optimizer = torchopt.sgd(lr=problem.step)

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        z = problem.z0.detach().requires_grad_()
        state = optimizer.init((z,))
        for _ in range(steps):
            slope = torch.autograd.grad(problem.inner(theta, z), (z,), create_graph=True)
            updates, state = optimizer.update(slope, state, inplace=False)
            (z,) = torchopt.apply_updates((z,), updates, inplace=False)
        (found,) = torch.autograd.grad(problem.outer(theta, z), theta)
        return found

    return Prepared(run, lambda found: found)


def prepare_implicit(problem: Cleaning, steps: int, products: int) -> Prepared:
    """Return the hypergradient by gradient descent inside `custom_root`, then CG."""

    def lower(z: Tensor, theta: Tensor) -> Tensor:
        return problem.inner(theta, z)

    linear = torchopt.linear_solve.solve_cg(maxiter=products, rtol=0.0)

    @torchopt.diff.implicit.custom_root(torch.func.grad(lower, argnums=0), argnums=1, solve=linear)  # type: ignore[untyped-decorator]
    def solve(z: Tensor, theta: Tensor) -> Tensor:
        with torch.enable_grad():
            return descend(problem, theta.detach(), steps).requires_grad_()

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        problem.outer(theta, solve(problem.z0, theta)).backward()
        assert theta.grad is not None
        return theta.grad

    return Prepared(run, lambda found: found)
