"""The loop of `fit` over the upper variable, with any torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._entrance import entrance
from blo._failures import one_of_a_kind
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._lower import LowerProblem
from blo._scheduled import OptimizerFactory, Scheduled, SchedulerFactory
from blo._settings import require_count
from blo._types import OnFailure, Tree
from blo._upper._progress import bar
from blo._upper._step import Callback, FitStep, listener
from blo.errors import StructureError
from blo.gradients import Strategy
from blo.solvers import Solver

_KEPT = {"theta", "steps", "lower", "optimizer"}


@dataclass(frozen=True, eq=False)
class FitResult:
    """The result of a fit. `pickle` and `torch.save` accept it; `torch.load` needs `weights_only=False`.

    Attributes:
        theta: the last upper variable, a tree like the argument `theta`.
        z: the lower solution at the last theta whose hypergradient was computed, a tree like z0.
        values: the upper objective before each step, shape `(steps made,)`.
        hypergradient: the last hypergradient, with its report.
        state: pass it as `state` to continue the fit. It holds tensors, numbers, names and the `state_dict` of
            optimiser and schedule, for `torch.save` and `torch.load(..., weights_only=True)`.
    """

    theta: Tree
    z: Tree
    values: Tensor
    hypergradient: Hypergradient
    state: dict[str, Any]


@entrance("Solve several problems in one fit as a problem with batched=True, whose upper objective is a sum.")
def fit(
    upper: Callable[[Tree, Tree], Tensor],
    lower: LowerProblem,
    theta: Tree,
    z0: Tree,
    *,
    optimizer: OptimizerFactory,
    steps: int,
    solver: Solver | None = None,
    gradient: Strategy | None = None,
    scheduler: SchedulerFactory | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    state: dict[str, Any] | None = None,
    on_failure: OnFailure | None = None,
) -> FitResult:
    """Minimise f(theta, z*(theta)) over theta with a torch optimiser; each lower solve starts from the last solution.

    With `Unrolled` each solve starts from `z0` or from the `start` of the strategy: the start is part of the algorithm
    that is differentiated (in MAML it is the start of the adaptation), and from a solution the solver would make no
    step that could be differentiated.

    Args:
        upper: as in `value_and_hypergrad`.
        lower: as in `value_and_hypergrad`.
        theta: the start; not modified. Leaves of integers and booleans are data.
        z0: start of the first lower solve.
        optimizer: creates the optimiser from a list of tensors, for example
            `lambda parameters: torch.optim.Adam(parameters, lr=0.1)`. It may evaluate the hypergradient several times
            per step, like `torch.optim.LBFGS`.
        steps: maximum number of optimiser steps in this call.
        solver: as in `value_and_hypergrad`.
        gradient: as in `value_and_hypergrad`.
        scheduler: creates the learning-rate schedule from the optimiser, for example
            `lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)`. It advances after each step of the
            optimiser; `ReduceLROnPlateau` gets the value before that step.
        progress: whether to show a tqdm progress bar with the value, the norm of the gradient and the status.
        callback: called with a `FitStep` after each step. Return true to stop. A function that requires three arguments
            or takes any number (`*args`) is called with `step.step`, `step.theta` and `step.hypergradient`.
        state: `.state` of an earlier fit, or a `FitStep.checkpoint()`, from which to continue. It replaces `theta` and
            `z0` (with `Unrolled`, only `theta`) and is not modified. Pass the same `optimizer` and `scheduler`.
        on_failure: as in `value_and_hypergrad`.

    Raises:
        StructureError: if `optimizer` or `scheduler` does not return one, `callback` is not a function, theta holds
            nothing to optimise, `solver` is `Given` or another that takes the start as the solution, or `state` does
            not come from a fit with this optimiser and schedule; and as in `value_and_hypergrad`.
        ModuleNotFoundError: if `progress` is set and tqdm is not installed.
        ValueError: if `steps` is not positive; and as in `value_and_hypergrad`.
        InfeasibleError: as in `value_and_hypergrad`, at any theta that the optimiser reaches.
        NonFiniteError: as in `value_and_hypergrad`.
        DerivativeError: as in `value_and_hypergrad`.
        ConvergenceError: as in `value_and_hypergrad`.

    Warns:
        BloWarning: as in `value_and_hypergrad`, but each kind of warning once per call, not at each step.
    """
    require_count(steps, "steps")
    if isinstance(solver, Solver) and solver.takes_start:
        raise StructureError(
            f"`{type(solver).__name__}` takes `z0` as the solution, but the solution changes with theta in each step "
            "of `fit`. Pass `External(function, tol=math.inf)`, whose function(theta, z) continues your own loop from "
            "z."
        )
    _check_state(state)
    tell = listener(callback)
    afresh = gradient is not None and gradient.unrolls
    given, spec = tree.flatten(theta if state is None else state["theta"], "theta")
    leaves = [leaf.detach().clone().requires_grad_(leaf.is_floating_point() or leaf.is_complex()) for leaf in given]
    parameters = [leaf for leaf in leaves if leaf.requires_grad]
    if not parameters:
        raise StructureError("`theta` must hold at least one floating point tensor to optimise, but holds none.")
    # States of versions without schedules lack this entry.
    saved = None if state is None else {"scheduler": None, **state}
    maker = Scheduled(parameters, optimizer, scheduler, saved)
    begun = done = 0 if state is None else int(state["steps"])
    warm = None if state is None or afresh else state["lower"]
    values: list[Tensor] = []
    given_kinds: set[tuple[type, str]] = set()  # the kinds of warnings given so far
    # The first and the last hypergradient of the current step. No others are kept, since each may hold a graph.
    latest: list[Hypergradient] = []

    def evaluate() -> Tensor:
        nonlocal warm
        point = tree.unflatten([leaf.detach() for leaf in leaves], spec)
        with one_of_a_kind(given_kinds):
            out = value_and_hypergrad(
                upper, lower, point, z0, solver=solver, gradient=gradient, state=warm, on_failure=on_failure
            )
        # A copy: the optimiser may write to `.grad`, and the hypergradient goes to the callback.
        for leaf, slope in zip(leaves, tree.flatten(out.grad)[0], strict=True):
            leaf.grad = slope.clone() if leaf.requires_grad else None
        warm = None if afresh else out.state
        # An optimiser such as LBFGS evaluates several times in one step: the first stays, the last is replaced.
        latest[1:] = [out]
        return out.value

    def checkpoint(step: int) -> dict[str, Any]:
        if step != done:
            raise StructureError(
                f"`checkpoint` of step {step} must be called before the next step, but {done} steps were made. Call it "
                "inside the callback."
            )
        # Optimiser and schedule change their states in place, so these are copied; `_tree` copies theta. A warm start
        # is replaced and never changed, so it needs no copy.
        return {"theta": _tree(leaves, spec), "steps": done, "lower": warm, **deepcopy(maker.state_dict())}

    with bar(progress, begun, steps) as shown:
        for step in range(begun + 1, begun + steps + 1):
            latest.clear()
            maker.optimizer.step(evaluate)  # type: ignore[arg-type]  # torch's stub asks for a float, and takes a tensor
            maker.advance(latest[0].value)
            # Tensors, since reading their numbers would wait for the device in each step.
            values.append(latest[0].value)
            done = step
            shown(latest[0])
            now = FitStep(step, _tree(leaves, spec), latest[0], warm, maker.optimizer, maker.scheduler, checkpoint)
            if tell(now):
                break
    return FitResult(
        theta=_tree(leaves, spec),
        z=latest[-1].z,
        values=torch.stack(values),
        hypergradient=latest[-1],
        state=checkpoint(done),
    )


def _check_state(state: Any) -> None:
    """Check that `state` comes from a fit. A state of a version without schedules has no key `scheduler`.

    Raises:
        StructureError: if it does not.
    """
    if state is None or (isinstance(state, dict) and set(state) - {"scheduler"} == _KEPT):
        return
    found = f"holds {list(state)}" if isinstance(state, dict) else f"is of type {type(state).__name__}"
    raise StructureError(f"`state` must be the `.state` of an earlier fit, but {found}.")


def _tree(leaves: Sequence[Tensor], spec: tree.TreeSpec) -> Tree:
    return tree.unflatten([leaf.detach().clone() for leaf in leaves], spec)
