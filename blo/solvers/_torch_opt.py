"""A torchopt optimiser as a lower solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import as_tensor, plain
from blo._layout import Layout
from blo._settings import require_budget
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem
from blo.solvers._carried import continued, require_carry
from blo.solvers._iterative import Iterative
from blo.solvers._of_theta import varies
from blo.solvers._optimizers import CONVERTED, Differentiably, require_derivative, require_set
from blo.solvers._transform import require_transform, transformed


class FunctionalOptimizer(Protocol):
    """The interface of torchopt's gradient transformations, for example `torchopt.adam(0.1)`."""

    @property
    def init(self) -> Callable[..., Any]:
        """`init(params) -> state`."""

    @property
    def update(self) -> Callable[..., Any]:
        """`update(gradients, state, params=..., inplace=False) -> (updates, state)`."""


@dataclass(frozen=True)
class TorchOpt(Iterative):
    """Runs a torchopt optimiser whose steps can be differentiated: `TorchOpt(torchopt.adam(0.1), steps=100)`.

    After each update the point is projected onto the constraint set. All problems of a batch share the optimiser's
    counters. Its other state is separate for each lane, provided that the optimiser treats coordinates independently.
    In steps that are differentiated, the square roots of the optimiser have the derivative 0 at 0, since otherwise
    Adam and similar optimisers have a NaN derivative at a zero gradient. An optimiser that treats something that
    depends on the gradient as a constant, as `torchopt.clip.clip_grad_norm` does with the norm, raises an error as soon
    as its derivative is wrong.

    An optimiser that is a function of theta, like `lambda theta: torchopt.sgd(lr=theta["lr"])`, is created again for
    each theta. `Unrolled` differentiates its settings with the steps; their values are not checked. Strategies that
    only need the solution, like `Implicit`, treat them as constants, because the solution does not depend on the path
    to it.

    The first update that an optimiser ever makes is discarded, because `torchopt.sgd` ignores `dampening` in it and
    every solve must be the same function.

    Args:
        optimizer: has `init` and `update` as in torchopt (Ren et al., JMLR 2023), or is a function of theta that
            returns such an optimiser. It gets z as one flat tensor.
        steps: maximum number of updates.
        tol: a lane stops at this residual `|z - project(z - gradient)|`, in the unit of the gradient. None makes
            exactly `steps` updates.
        transform: a function that is applied to each gradient before the step, for example clipping. It takes a tree
            like z (with the batch axis first) and returns another, without writing to its argument. `Unrolled`
            differentiates it. Residuals are those of the gradient itself.
        carry: the `state` of `value_and_hypergrad` passes the state of the optimiser and the number of the next batch
            to the next call. This needs a fixed number of steps (tol=None).

    Raises:
        ValueError: for values outside these ranges.
        StructureError: if the optimiser lacks `init` or `update`; for a function of theta, the solve raises it. The
            solve also raises it for a penalty, and if torch's derivative of an update that will be unrolled is wrong.
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
        """Return the state at z0.

        Raises:
            StructureError: if there is a penalty.
        """
        require_set(problem.term, "TorchOpt")
        age: Tensor | tuple[()] = (
            torch.zeros((), dtype=torch.int64, device="cpu") if self.carry or problem.stepwise else ()
        )
        if self.carry and problem.carried:
            age = problem.carried[0]
        slope = problem.at_step(age).gradient(z0)
        # Under `vmap` the optimiser updates its tensors in place, so they need the mapped axis of the gradient: adding
        # zeros like the gradient gives it to them. Counters that are numbers become tensors, so that steps can be
        # repeated from any state.
        optimizer = self._optimizer(problem)
        inner = tree.map(lambda leaf: as_tensor(leaf).detach(), optimizer.init(z0 + torch.zeros_like(slope)))
        if not varies(self.optimizer) and not self._begun:
            _updated(optimizer, slope.detach(), inner, z0)  # the very first update, whose result is not used
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
            # A dropped graph is harmless for a counter but not for the gradient's norm: compare the derivatives.
            if mode.constants:
                past, z = (tree.map(lambda leaf: plain(leaf).detach(), part) for part in (state.inner, state.z))
                require_derivative(lambda slope: _updated(optimizer, slope, past, z)[0], slope)
        age = state.age + 1 if isinstance(state.age, Tensor) else state.age
        return state._replace(trial=problem.prox(state.z + updates, 1.0), inner=inner, age=age)

    def look(self, problem: Problem, state: _State) -> _State:
        return state._replace(z=state.trial, slope=problem.at_step(state.age).gradient(state.trial))

    def _optimizer(self, problem: Problem) -> FunctionalOptimizer:
        """Return the optimiser at this theta.

        Raises:
            StructureError: if the function of theta does not return an optimiser.
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
    """Check that a function of theta returned an optimiser, and return it after its very first update."""
    _required(optimizer)
    begun: FunctionalOptimizer = optimizer
    # The point and the gradient of the discarded update do not matter.
    z = torch.ones(*layout.lanes, layout.size, dtype=layout.dtype, device=layout.device)
    _updated(begun, z, tree.map(as_tensor, begun.init(z)), z)
    return begun


def _updated(optimizer: FunctionalOptimizer, slope: Tensor, inner: Any, z: Tensor) -> tuple[Tensor, Any]:
    try:
        found: tuple[Tensor, Any] = optimizer.update(slope, inner, params=z, inplace=False)
    except TypeError as error:
        if "must be Number, not Tensor" not in str(error):
            raise
        raise StructureError(CONVERTED) from error
    except RuntimeError as error:
        # torch's message on an autograd.Function without the static method that transforms need
        if "setup_context" not in str(error):
            raise
        raise StructureError(
            "`optimizer` must support torch.func transforms, which forward mode needs, but its update uses an "
            "autograd.Function that does not. Create it with use_accelerated_op=False, or use Unrolled() and "
            ".backward()."
        ) from error
    return found


class _State(NamedTuple):
    """The state: z, slope, trial, the optimiser's state `inner`, a tree of tensors, and the number of steps `age`."""

    z: Tensor
    slope: Tensor
    trial: Tensor
    inner: Any
    age: Tensor | tuple[()]

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))
