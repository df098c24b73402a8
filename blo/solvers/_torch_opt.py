"""A functional optimiser as a lower solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain
from blo._layout import Layout
from blo._settings import require_budget
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem
from blo.solvers._carried import continued, require_carry
from blo.solvers._iterative import Iterative
from blo.solvers._of_theta import varies
from blo.solvers._optimizers import Differentiably, require_derivative, require_set
from blo.solvers._transform import require_transform, transformed


class FunctionalOptimizer(Protocol):
    """What torchopt calls a gradient transformation, for example `torchopt.adam(0.1)`."""

    @property
    def init(self) -> Callable[..., Any]:
        """`init(params) -> state`."""

    @property
    def update(self) -> Callable[..., Any]:
        """`update(gradients, state, params=..., inplace=False) -> (updates, state)`."""


@dataclass(frozen=True)
class TorchOpt(Iterative):
    """Runs a torchopt optimiser, and can be differentiated through: `TorchOpt(torchopt.adam(0.1), steps=100)`.

    After each update the point is projected on the constraint set. All problems of a batch share the optimiser's
    counters; whatever else it keeps is kept for each lane, provided that it treats coordinates one by one. In steps
    that are differentiated, the square roots of the optimiser have the derivative 0 at 0: where a gradient is exactly
    zero, that of Adam and its relatives would be NaN. An optimiser that makes a constant of what depends on the
    gradient, as `torchopt.clip.clip_grad_norm` does of the norm, is refused there, once it matters.

    An optimiser that is a function of theta, as `lambda theta: torchopt.sgd(lr=theta["lr"])`, is made anew for each
    theta. `Unrolled` differentiates what it makes of theta with the steps; the values are not looked at. Strategies
    that only need the solution, like `Implicit`, treat it as a constant: where a solve ends does not depend on how it
    got there.

    The first update ever made by an optimiser is thrown away: `torchopt.sgd` with `dampening` makes it without, and
    each solve is to be the same function.

    Args:
        optimizer: has `init` and `update` as in torchopt (Ren et al., JMLR 2023), or is a function of theta that
            returns such an optimiser; it sees z as one flat tensor.
        steps: most updates.
        tol: residual `|z - project(z - gradient)|` at which a lane stops. None makes exactly `steps` updates.
        transform: what is made of each gradient before the step, for example clipping: a function that returns a tree
            like the gradient, a tree like z (with the axis of the batch in front), without writing to it. `Unrolled`
            differentiates it; residuals are those of the gradient itself.
        carry: the `state` of `value_and_hypergrad` hands the state of the optimiser and the number of the next batch on
            to the next call. For a fixed number of steps (tol=None).

    Raises:
        ValueError: for values outside these ranges.
        StructureError: if the optimiser lacks `init` or `update`; by the solve, for that of a function.
    """

    may_vary = ("optimizer",)
    takes_batches = True

    optimizer: FunctionalOptimizer | Callable[[Tree], FunctionalOptimizer]
    steps: int
    tol: float | None = None
    transform: Callable[[Tree], Tree] | None = None
    carry: bool = False
    _begun: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_budget(self.steps, self.tol, "steps")
        require_transform(self.transform)
        require_carry(self.carry, self.tol is None)
        if not varies(self.optimizer):
            _required(self.optimizer)

    @property
    def max_steps(self) -> int:  # type: ignore[override]
        """The same as `steps`."""
        return self.steps

    def start(self, problem: Problem, z0: Tensor) -> _State:
        """Evaluate at z0.

        Raises:
            StructureError: if there is a penalty.
        """
        require_set(problem.term, "TorchOpt")
        age: Tensor | tuple[()] = torch.zeros((), dtype=torch.int64) if self.carry or problem.stepwise else ()
        if self.carry and problem.carried:
            age = problem.carried[0]
        slope = problem.at_step(age).gradient(z0)
        # Under `vmap` the optimiser updates its tensors in place, so they need the mapped axis of the slope. Counters
        # that are numbers become tensors, so that steps can be repeated from any state.
        optimizer = self._optimizer(problem)
        inner = tree.map(lambda leaf: torch.as_tensor(leaf).detach(), optimizer.init(z0 + torch.zeros_like(slope)))
        if not varies(self.optimizer) and not self._begun:
            _updated(optimizer, slope.detach(), inner, z0)
            self._begun.append(True)
        if self.carry and isinstance(age, Tensor):
            leaves, spec = tree.flatten(inner)
            inner = tree.unflatten(continued(problem, [age, *leaves])[1:], spec)
        return _State(z0, slope, z0, inner, age)

    def carried(self, state: _State) -> Sequence[Tensor]:
        return (state.age, *tree.leaves(state.inner)) if self.carry and isinstance(state.age, Tensor) else ()

    def move(self, problem: Problem, state: _State) -> _State:
        optimizer, slope = self._optimizer(problem), transformed(problem, self.transform, state.slope)
        if not problem.recorded:
            updates, inner = _updated(optimizer, slope, state.inner, state.z)
        else:
            with Differentiably() as mode:
                updates, inner = _updated(optimizer, slope, state.inner, state.z)
            if mode.constants:
                past, z = (tree.map(lambda leaf: plain(leaf).detach(), part) for part in (state.inner, state.z))
                require_derivative(lambda slope: _updated(optimizer, slope, past, z)[0], slope)
        age = state.age + 1 if isinstance(state.age, Tensor) else state.age
        return state._replace(trial=problem.prox(state.z + updates, 1.0), inner=inner, age=age)

    def look(self, problem: Problem, state: _State) -> _State:
        return state._replace(z=state.trial, slope=problem.at_step(state.age).gradient(state.trial))

    def _optimizer(self, problem: Problem) -> FunctionalOptimizer:
        """Return the optimiser for this theta.

        Raises:
            StructureError: if the function of theta returns anything else.
        """
        if not varies(self.optimizer):
            return self.optimizer
        found: FunctionalOptimizer = problem.at_theta(
            self.optimizer, "optimizer", lambda given: _begun(given, problem.layout)
        )
        return found


def _required(optimizer: Any) -> None:
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise StructureError(
            "`optimizer` must have the functions `init` and `update` of a torchopt optimiser such as "
            f"torchopt.adam(0.1), or be a function of theta that returns one, but is {type(optimizer).__name__}. For "
            "torch.optim use TorchOptim()."
        )


def _begun(optimizer: Any, layout: Layout) -> FunctionalOptimizer:
    """Return an optimiser that has made an update, if it is one."""
    _required(optimizer)
    begun: FunctionalOptimizer = optimizer
    z = torch.ones(*layout.lanes, layout.size, dtype=layout.dtype, device=layout.device)
    _updated(begun, z, tree.map(torch.as_tensor, begun.init(z)), z)
    return begun


def _updated(optimizer: FunctionalOptimizer, slope: Tensor, inner: Any, z: Tensor) -> tuple[Tensor, Any]:
    try:
        found: tuple[Tensor, Any] = optimizer.update(slope, inner, params=z, inplace=False)
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        raise StructureError(
            "`optimizer` must run inside torch.func transforms, and so in forward mode, but makes its update by an "
            "autograd.Function that does not. Make it with use_accelerated_op=False, or use Unrolled() and "
            ".backward()."
        ) from error
    return found


class _State(NamedTuple):
    """Beside z, slope and trial: what the optimiser keeps, a tree of tensors, and how many steps were made."""

    z: Tensor
    slope: Tensor
    trial: Tensor
    inner: Any
    age: Tensor | tuple[()]

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))
