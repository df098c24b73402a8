"""What a callback of `fit` is given."""

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
    """One step of `fit`, as its callback sees it.

    The hypergradient, and `z`, `value`, `grad` and `report` with it, belongs to the theta from which the step was made.

    Attributes:
        step: its number, counted from 1 over all calls that continue one another.
        theta: the new upper variable, a tree like the one given to `fit`.
        hypergradient: the one that the step went along, or the first of them.
        state: warm start of the next lower solve, as `Hypergradient.state`; None where each begins at `z0`.
        optimizer: the optimiser, whose settings may be changed.
        scheduler: the schedule of its learning rate, already stepped; None without one.
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
        """Diagnostics of the hypergradient, computed when read."""
        return self.hypergradient.report

    def checkpoint(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return what `fit` needs as `state` to go on from this step as if it had never stopped.

        It holds copies of tensors, numbers and names, for `torch.load(path, weights_only=True)`. The state of random
        generators that objectives draw from is the caller's to save.

        Args:
            path: where to save it with `torch.save`, too; a file of that name is replaced once the new one is whole.

        Raises:
            StructureError: after the callback of this step has returned and another step was made.
        """
        saved = self._saved(self.step)
        if path is not None:
            unfinished = f"{os.fspath(path)}.unfinished"
            torch.save(saved, unfinished)
            os.replace(unfinished, path)
        return saved


#: Called after each step; true stops the loop.
Callback: TypeAlias = Callable[[FitStep], object] | Callable[[int, Tree, Hypergradient], object]


def listener(callback: Callback | None) -> Callable[[FitStep], object]:
    """Return a function of a `FitStep` that calls `callback` with what it takes.

    Raises:
        StructureError: if it is not a function of one or of three arguments.
    """
    if callback is None:
        return lambda step: None
    taken = _taken(callback)
    if taken == 1:
        return callback  # type: ignore[return-value]
    call: Any = callback
    return lambda step: call(step.step, step.theta, step.hypergradient)


def _taken(callback: Any) -> int:
    """Return with how many arguments to call it: three where they are asked for, or where any number is taken."""
    message = "`callback` must be a function of one argument, a FitStep, or of step, theta and hypergradient, but "
    if not callable(callback):
        raise StructureError(f"{message}is of type {type(callback).__name__}.")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some builtins do not say
        return 1
    named = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in signature.parameters.values())
    for count in (1, 3) if named else (3,):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    raise StructureError(f"{message}takes {signature}.")
