"""A small loop over the upper variable, with any torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from blo import tree
from blo._entrance import entrance
from blo._failures import one_of_a_kind
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._lower import LowerProblem
from blo._settings import require_count
from blo._types import OnFailure, Tree
from blo.errors import StructureError
from blo.gradients import Strategy
from blo.solvers import Solver

#: `callback(step, theta, hypergradient)` after each step; true stops the loop.
Callback: TypeAlias = Callable[[int, Tree, Hypergradient], object]


@dataclass(frozen=True, eq=False)
class FitResult:
    """Where a fit ended.

    Attributes:
        theta: the upper variable, a tree like the one given.
        z: the lower solution at the last theta whose hypergradient was computed, a tree like z0.
        values: the upper objective before each step, shape `(steps made,)`.
        hypergradient: the last one, with its report.
        state: continues the fit when given as `state`; tensors, numbers and the optimiser's `state_dict`, safe to
            `torch.save`.
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
    optimizer: Callable[[list[Tensor]], Optimizer],
    steps: int,
    solver: Solver | None = None,
    gradient: Strategy | None = None,
    callback: Callback | None = None,
    state: dict[str, Any] | None = None,
    on_failure: OnFailure | None = None,
) -> FitResult:
    """Minimise f(theta, z*(theta)) over theta with a torch optimiser, each lower solve started from the last one.

    With `Unrolled` each solve starts from `z0`, or where its `start` says: the start is part of the algorithm that is
    differentiated (in MAML it is where adaptation begins), and from a solution on no step would be made, let alone
    differentiated.

    Args:
        upper: as in `value_and_hypergrad`.
        lower: as in `value_and_hypergrad`.
        theta: the start; not modified. Leaves of integers and booleans are data.
        z0: start of the first lower solve.
        optimizer: makes the optimiser from a list of tensors, for example
            `lambda parameters: torch.optim.Adam(parameters, lr=0.1)`. One that evaluates several times a step
            (`torch.optim.LBFGS`) may be used.
        steps: most optimiser steps to make in this call.
        solver: as in `value_and_hypergrad`.
        gradient: as in `value_and_hypergrad`.
        callback: `callback(step, theta, hypergradient)` after each step, steps numbered from 1 over all calls; theta
            is the new one and the hypergradient was taken before the step. What is true stops the loop.
        state: `.state` of an earlier fit to continue, in place of `theta` and `z0` (with `Unrolled`, of theta);
            not modified.
        on_failure: as in `value_and_hypergrad`.

    Raises:
        StructureError: if `optimizer` does not make an optimiser, theta holds nothing to optimise, or `state` is none;
            and as in `value_and_hypergrad`.
        ValueError: if `steps` is not positive.
        NonFiniteError: as in `value_and_hypergrad`.
        ConvergenceError: as in `value_and_hypergrad`.

    Warns:
        BloWarning: as `value_and_hypergrad` does, each kind once in a call, not at each step.
    """
    require_count(steps, "steps")
    if state is not None and not (isinstance(state, dict) and set(state) == {"theta", "steps", "lower", "optimizer"}):
        found = f"holds {list(state)}" if isinstance(state, dict) else f"is of type {type(state).__name__}"
        raise StructureError(f"`state` must be the `.state` of an earlier fit, but {found}.")
    afresh = gradient is not None and gradient.unrolls
    given, spec = tree.flatten(theta if state is None else state["theta"], "theta")
    leaves = [leaf.detach().clone().requires_grad_(leaf.is_floating_point() or leaf.is_complex()) for leaf in given]
    maker = _make(optimizer, [leaf for leaf in leaves if leaf.requires_grad])
    done, warm = 0, None
    if state is not None:
        done, warm = state["steps"], None if afresh else state["lower"]
        maker.load_state_dict(deepcopy(state["optimizer"]))  # whose tensors it would update in place
    values: list[Tensor] = []
    told: set[tuple[type, str]] = set()  # the kinds of warnings
    latest: list[Hypergradient] = []  # the first of the step and the last: each may hold a graph

    def evaluate() -> Tensor:
        nonlocal warm
        point = tree.unflatten([leaf.detach() for leaf in leaves], spec)
        with one_of_a_kind(told):
            out = value_and_hypergrad(
                upper, lower, point, z0, solver=solver, gradient=gradient, state=warm, on_failure=on_failure
            )
        for leaf, slope in zip(leaves, tree.flatten(out.grad)[0], strict=True):
            leaf.grad = slope.clone() if leaf.requires_grad else None
        warm = None if afresh else out.state
        latest[1:] = [out]
        return out.value

    for step in range(done + 1, done + steps + 1):
        latest.clear()
        maker.step(evaluate)  # type: ignore[arg-type]  # torch's stub asks for a float where it takes a tensor
        values.append(latest[0].value)
        done = step
        if callback is not None and callback(step, _tree(leaves, spec), latest[0]):
            break
    found = _tree(leaves, spec)
    return FitResult(
        theta=found,
        z=latest[-1].z,
        values=torch.stack(values),
        hypergradient=latest[-1],
        state={"theta": found, "steps": done, "lower": warm, "optimizer": maker.state_dict()},
    )


def _make(optimizer: Callable[[list[Tensor]], Optimizer], parameters: list[Tensor]) -> Optimizer:
    if not parameters:
        raise StructureError("`theta` must hold at least one floating point tensor to optimise, but holds none.")
    made = optimizer(parameters) if callable(optimizer) else optimizer
    if not isinstance(made, Optimizer):
        raise StructureError(
            f"`optimizer` must make a torch optimiser from a list of tensors, but gave {type(made).__name__}. "
            "For example: optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1)."
        )
    if isinstance(optimizer, Optimizer):
        raise StructureError("`optimizer` must make an optimiser of the tensors it is given, but is one already.")
    return made


def _tree(leaves: Sequence[Tensor], spec: tree.TreeSpec) -> Tree:
    return tree.unflatten([leaf.detach().clone() for leaf in leaves], spec)
