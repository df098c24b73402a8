"""A torch.optim optimiser as a lower solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import all_true, transforms_active
from blo._settings import require_budget
from blo.errors import StructureError
from blo.solvers._base import Problem, Solution, Solver
from blo.solvers._optimizers import require_set


@dataclass(frozen=True)
class TorchOptim(Solver):
    """Runs an optimiser of torch.optim: `TorchOptim(lambda p: torch.optim.Adam(p, lr=0.1), steps=200)`.

    The optimiser writes to its own copy of z, so its steps cannot be differentiated: use implicit strategies. After
    each step the point is projected onto the constraint set. Optimisers that treat coordinates independently keep the
    problems of a batch separate. Others, like `torch.optim.LBFGS`, minimise the sum of the objectives.

    Args:
        factory: takes a list with one flat parameter of shape `(*lanes, n)` and returns its optimiser.
        steps: maximum number of calls of the optimiser's `step`.
        tol: a lane stops at this residual `|z - project(z - gradient)|`, in the unit of the gradient, and does not
            change afterwards. None makes exactly `steps` steps.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: if `factory` is not a function. The solve raises it for a penalty, and if it is to be
            differentiated.
    """

    takes_batches = True

    factory: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    steps: int
    tol: float | None = None

    def __post_init__(self) -> None:
        require_budget(self.steps, self.tol, "steps")
        if not callable(self.factory):
            raise StructureError(
                "`factory` must be a function from a list of parameters to an optimiser, but is of type "
                f"{type(self.factory).__name__}. Write `lambda p: torch.optim.Adam(p, lr=0.1)`."
            )

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Make steps until all lanes have stopped.

        Raises:
            StructureError: if the solve is to be differentiated, inside a transform, for a penalty, or if the factory
                does not return an optimiser of the parameter that it was given.
        """
        require_set(problem.term, "TorchOptim")
        if problem.recorded or transforms_active():
            raise StructureError(
                "`TorchOptim` writes to its own copy of z, so its steps can be neither differentiated nor mapped by "
                "`vmap`. Use gradient=Implicit(), or the solver TorchOpt() or ProjectedGradient()."
            )
        # A copy: the optimiser writes to its parameter, and z0 must not change.
        z = torch.nn.Parameter(z0.detach().clone())
        optimizer = _made(self.factory, z)
        value, slope = problem.at_step(0).evaluate(z.detach())
        for index in range(self.steps):
            if self.tol is not None:
                residual = problem.residual(z.detach(), slope)
                done = residual <= self.tol
                if all_true(done):
                    return Solution(z.detach(), residual, self.tol, index)
                before = z.detach().clone()
            # The evaluation that measured the residual serves as the first one of this step.
            optimizer.step(_Closure(problem.at_step(index), z, [(value, slope)]))
            with torch.no_grad():
                z.copy_(problem.prox(z, 1.0))
                if self.tol is not None:
                    # The optimiser moves all lanes, also those that have stopped: put these back.
                    z.copy_(torch.where(done.unsqueeze(-1), before, z))
            # Without a tolerance nothing uses the gradient at the last point.
            if self.tol is not None or index < self.steps - 1:
                value, slope = problem.at_step(index + 1).evaluate(z.detach().clone())
        if self.tol is None:
            return Solution(z.detach(), None, None, self.steps)
        return Solution(z.detach(), problem.residual(z.detach(), slope), self.tol, self.steps)


@dataclass(frozen=True)
class _Closure:
    """Evaluates the objective at the optimiser's z, and returns a known evaluation in the first call."""

    problem: Problem
    z: torch.nn.Parameter
    known: list[tuple[Tensor, Tensor]]

    def __call__(self) -> float:
        value, slope = self.known.pop() if self.known else self.problem.evaluate(self.z.detach().clone())
        self.z.grad = slope.clone()
        return value.sum()  # type: ignore[return-value]  # optimisers that need a number convert it


def _made(
    factory: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], z: torch.nn.Parameter
) -> torch.optim.Optimizer:
    optimizer = factory([z])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise StructureError(
            f"`factory` must return a torch.optim optimiser, but returned {type(optimizer).__name__}. "
            "Write `lambda p: torch.optim.Adam(p, lr=0.1)`; for torchopt use TorchOpt()."
        )
    if not any(held is z for group in optimizer.param_groups for held in group["params"]):
        raise StructureError(
            "`factory` must return an optimiser of the parameters that it gets, but returned one of other parameters. "
            "Write `lambda p: torch.optim.Adam(p, lr=0.1)`."
        )
    return optimizer
