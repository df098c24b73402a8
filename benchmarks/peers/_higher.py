"""higher: differentiable steps of gradient descent; it has no implicit differentiation."""

from __future__ import annotations

import higher
import torch
from torch import Tensor, nn

from benchmarks.peers._base import Prepared, Unsupported
from benchmarks.smooth import Smooth
from benchmarks.unrolled import Cleaning

NAME = "higher"
DISTRIBUTION = "higher"
METHOD = "unrolled from the solution"
ITERATES = True


class _Lower(nn.Module):
    """The lower variable as a module, which `higher` requires."""

    def __init__(self, problem: Smooth) -> None:
        super().__init__()
        self.problem, self.z = problem, nn.Parameter(problem.z.detach().clone())

    def forward(self, theta: Tensor) -> Tensor:
        return self.problem.inner(theta, self.z)


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return the derivative of `products` steps of length 1/curvature; the backward pass makes one product for each."""
    if damping:
        raise Unsupported("no damping")
    module = _Lower(problem)
    optimizer = torch.optim.SGD(module.parameters(), lr=1 / problem.curvature)

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        with higher.innerloop_ctx(module, optimizer) as (stateless, steps):
            for _ in range(products):
                steps.step(stateless(theta))
            (found,) = torch.autograd.grad(problem.outer(theta, stateless.z), theta)
        return found

    return Prepared(run, lambda found: found)


def prepare_unrolled(problem: Cleaning, steps: int) -> Prepared:
    """Return the derivative of this many steps from the start."""

    class Lower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(problem.z0.detach().clone())

        def forward(self, theta: Tensor) -> Tensor:
            return problem.inner(theta, self.z)

    module = Lower()
    optimizer = torch.optim.SGD(module.parameters(), lr=problem.step)

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        with higher.innerloop_ctx(module, optimizer) as (stateless, differentiable):
            for _ in range(steps):
                differentiable.step(stateless(theta))
            (found,) = torch.autograd.grad(problem.outer(theta, stateless.z), theta)
        return found

    return Prepared(run, lambda found: found)
