"""A functional optimiser as a lower solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain
from blo._settings import require_budget
from blo.errors import StructureError
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative
from blo.solvers._optimizers import Differentiably, require_derivative, require_set


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

    The first update ever made by an optimiser is thrown away: `torchopt.sgd` with `dampening` makes it without, and
    each solve is to be the same function.

    Args:
        optimizer: has `init` and `update` as in torchopt (Ren et al., JMLR 2023); sees z as one flat tensor.
        steps: most updates.
        tol: residual `|z - project(z - gradient)|` at which a lane stops. None makes exactly `steps` updates.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: if the optimiser lacks `init` or `update`.
    """

    optimizer: FunctionalOptimizer
    steps: int
    tol: float | None = None
    _begun: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_budget(self.steps, self.tol, "steps")
        if not (callable(getattr(self.optimizer, "init", None)) and callable(getattr(self.optimizer, "update", None))):
            raise StructureError(
                "`optimizer` must have the functions `init` and `update` of a torchopt optimiser such as "
                f"torchopt.adam(0.1), but is {type(self.optimizer).__name__}. For torch.optim use TorchOptim()."
            )

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
        slope = problem.gradient(z0)
        # Under `vmap` the optimiser updates its tensors in place, so they need the mapped axis of the slope. Counters
        # that are numbers become tensors, so that steps can be repeated from any state.
        inner = tree.map(lambda leaf: torch.as_tensor(leaf).detach(), self.optimizer.init(z0 + torch.zeros_like(slope)))
        if not self._begun:
            self._updated(slope.detach(), inner, z0)
            self._begun.append(True)
        return _State(z0, slope, z0, inner)

    def move(self, problem: Problem, state: _State) -> _State:
        if not problem.recorded:
            updates, inner = self._updated(state.slope, state.inner, state.z)
        else:
            with Differentiably() as mode:
                updates, inner = self._updated(state.slope, state.inner, state.z)
            if mode.constants:
                past, z = (tree.map(lambda leaf: plain(leaf).detach(), part) for part in (state.inner, state.z))
                require_derivative(lambda slope: self._updated(slope, past, z)[0], state.slope)
        return state._replace(trial=problem.prox(state.z + updates, 1.0), inner=inner)

    def _updated(self, slope: Tensor, inner: Any, z: Tensor) -> tuple[Tensor, Any]:
        try:
            found: tuple[Tensor, Any] = self.optimizer.update(slope, inner, params=z, inplace=False)
        except RuntimeError as error:
            if "setup_context" not in str(error):
                raise
            raise StructureError(
                "`optimizer` must run inside torch.func transforms, and so in forward mode, but makes its update by an "
                "autograd.Function that does not. Make it with use_accelerated_op=False, or use Unrolled() and "
                ".backward()."
            ) from error
        return found

    def look(self, problem: Problem, state: _State) -> _State:
        return state._replace(z=state.trial, slope=problem.gradient(state.trial))


class _State(NamedTuple):
    """Beside z, slope and trial: what the optimiser keeps, a tree of tensors."""

    z: Tensor
    slope: Tensor
    trial: Tensor
    inner: Any

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))
