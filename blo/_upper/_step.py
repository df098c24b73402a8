"""The argument of the callback of `fit`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blo._hypergrad import Hypergradient
from blo._report import Report
from blo._types import Tree
from blo.errors import StructureError


@final
@dataclass(frozen=True, eq=False)
class FitStep:
    """One step of `fit`, for its callback.

    The hypergradient, with its `z`, `value`, `grad` and `report`, belongs to the theta before the step.

    Attributes:
        step: the number of the step, counted from 1 over all calls that continue one another.
        theta: the new upper variable, a tree like the argument of `fit`.
        hypergradient: the hypergradient that the step used; the first one if it used several.
        state: the warm start of the next lower solve, as in `Hypergradient.state`; None if each solve starts at `z0`.
        optimizer: the optimiser; the callback may change its settings.
        scheduler: the learning-rate schedule, which has already advanced; None without a schedule.
    """

    step: int
    theta: Tree
    hypergradient: Hypergradient
    state: dict[str, Any] | None
    optimizer: Optimizer
    scheduler: LRScheduler | None
    _saved: Callable[[int], dict[str, Any]] = field(repr=False)

    @property
    def z(self) -> Tree:
        """The lower solution, a tree like z0."""
        return self.hypergradient.z

    @property
    def value(self) -> Tensor:
        """The upper objective, shape `()`."""
        return self.hypergradient.value

    @property
    def grad(self) -> Tree:
        """The hypergradient in theta, a tree like theta."""
        return self.hypergradient.grad

    @property
    def report(self) -> Report:
        """Diagnostics of the hypergradient, which are computed when they are read."""
        return self.hypergradient.report

    def checkpoint(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return the `state` with which `fit` continues from this step as if it had not stopped.

        It holds copies of tensors, numbers and names, for `torch.load(path, weights_only=True)`. If objectives use
        random generators, the caller must save the states of these.

        Args:
            path: a file to which the state is also saved, with `torch.save`. An existing file is replaced when the new
                one is complete.

        Raises:
            StructureError: if another step was made after the callback of this step had returned.
        """
        saved = self._saved(self.step)
        if path is not None:
            # A process that is killed while it writes must not leave a damaged checkpoint in place of the last one.
            unfinished = f"{os.fspath(path)}.unfinished"
            torch.save(saved, unfinished)
            os.replace(unfinished, path)
        return saved


#: Called after each step; true stops the loop.
Callback: TypeAlias = Callable[[FitStep], object] | Callable[[int, Tree, Hypergradient], object]


def listener(callback: Callback | None) -> Callable[[FitStep], object]:
    """Return a function of a `FitStep` that calls `callback` with one or three arguments.

    Raises:
        StructureError: if `callback` is not a function of one or of three arguments.
    """
    if callback is None:
        return lambda step: None
    taken = _taken(callback)
    if taken == 1:
        return callback  # type: ignore[return-value]
    call: Any = callback
    return lambda step: call(step.step, step.theta, step.hypergradient)


def _taken(callback: Any) -> int:
    """Return the number of arguments for the call: three if the callback requires three or takes any number, or one."""
    message = "`callback` must be a function of one argument, a FitStep, or of step, theta and hypergradient, but "
    if not callable(callback):
        raise StructureError(f"{message}is of type {type(callback).__name__}.")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some builtins have no signature
        return 1
    named = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in signature.parameters.values())
    # One argument comes first: a function whose other parameters have defaults can be called either way.
    for count in (1, 3) if named else (3,):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    raise StructureError(f"{message}takes {signature}.")
