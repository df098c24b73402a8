"""hypertorch (module `hypergrad`): conjugate gradients on the fixed point of a gradient step.

It is not on PyPI, where other projects have its two names; it is used if the module is found.
"""

from __future__ import annotations

import hypergrad
import torch
from torch import Tensor

from benchmarks.peers._base import Prepared, Unsupported
from benchmarks.smooth import Smooth
from benchmarks.unrolled import Cleaning, descend

if not hasattr(hypergrad, "CG_normaleq"):
    raise ImportError("the module hypergrad found here is another project")

NAME = "hypertorch"
DISTRIBUTION = None
METHOD = "CG on a fixed-point map"
ITERATES = True


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return the hypergradient for the map `z - gradient/curvature`."""
    if damping:
        raise Unsupported("no damping")

    def step(params: list[Tensor], hparams: list[Tensor]) -> list[Tensor]:
        value = problem.inner(hparams[0], params[0])
        (slope,) = torch.autograd.grad(value, params, create_graph=True)
        return [params[0] - slope / problem.curvature]

    def outer(params: list[Tensor], hparams: list[Tensor]) -> Tensor:
        return problem.outer(hparams[0], params[0])

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        (found,) = hypergrad.CG([problem.z], [theta], products, step, outer, tol=0.0, set_grad=False)
        return found  # type: ignore[no-any-return]

    return Prepared(run, lambda found: found)


def prepare_implicit(problem: Cleaning, steps: int, products: int) -> Prepared:
    """Return the hypergradient by gradient descent, then CG on the fixed point of one of its steps."""

    def step(params: list[Tensor], hparams: list[Tensor]) -> list[Tensor]:
        (slope,) = torch.autograd.grad(problem.inner(hparams[0], params[0]), params, create_graph=True)
        return [params[0] - problem.step * slope]

    def outer(params: list[Tensor], hparams: list[Tensor]) -> Tensor:
        return problem.outer(hparams[0], params[0])

    def run() -> Tensor:
        theta = problem.theta.detach().requires_grad_()
        z = descend(problem, problem.theta, steps)
        (found,) = hypergrad.CG([z], [theta], products, step, outer, tol=0.0, set_grad=False)
        return found  # type: ignore[no-any-return]

    return Prepared(run, lambda found: found)
