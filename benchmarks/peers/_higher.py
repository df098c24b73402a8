"""higher: differentiable steps of gradient descent; it has no implicit differentiation."""

from __future__ import annotations

import higher
import torch
from torch import Tensor, nn

from benchmarks.peers._base import Prepared, Unsupported
from benchmarks.smooth import Smooth

NAME = "higher"
DISTRIBUTION = "higher"
METHOD = "unrolled from the solution"
ITERATES = True


class _Lower(nn.Module):
    """The lower variable as a module, as `higher` wants it."""

    def __init__(self, problem: Smooth) -> None:
        super().__init__()
        self.problem, self.z = problem, nn.Parameter(problem.z.detach().clone())

    def forward(self, theta: Tensor) -> Tensor:
        return self.problem.inner(theta, self.z)


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return the derivative of `products` steps of length 1/curvature; each costs a product on the way back."""
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
