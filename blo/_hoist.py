"""Makes captured tensors arguments, so that `torch.func` transforms reach them.

An objective captures its data. When `vmap` or `grad` acts on that data, an `autograd.Function` sees it too late: its
backward pass runs outside the transform. So under a transform the captured tensors that belong to it are found by
running the objective once, and travel through `argmin` as a part of theta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from blo import tree
from blo._captured import Finder, captured, transformed
from blo._layout import Layout
from blo._lower import LowerProblem, replace_objective
from blo._objective import FixedPointMap, Linearized, Minibatched, around
from blo._substitute import Exchange, in_transform
from blo._term import Term
from blo._types import Objective, Tree
from blo.errors import StructureError
from blo.sets import SmoothConstraints
from blo.solvers import Solver, functions_of_theta


def hoist(
    lower: LowerProblem, theta: Tree, z0: Tree, solver: Solver | None
) -> tuple[LowerProblem, Tree, Solver | None]:
    """Return an equal problem whose theta is `(theta, captured tensors, parameters of a captured set or penalty)`.

    The settings of the solver that are functions of theta become functions of that.
    """
    settings = {} if solver is None else functions_of_theta(solver)

    custom = False

    def run(finder: Finder) -> None:
        nonlocal custom
        probe, start = _again(finder, theta), _again(finder, z0)
        with finder:
            evaluate: Callable[..., Any] = lower.objective
            if isinstance(lower.objective, FixedPointMap | Minibatched):
                evaluate = lower.objective.function
            if isinstance(lower.objective, Minibatched):
                evaluate(probe, start, 0)
                for step in range(getattr(solver, "max_steps", 0)):  # the batches of these steps may be captured
                    finder.note(lower.objective.function.batch(step))  # type: ignore[attr-defined]
            else:
                evaluate(probe, start)
            if not isinstance(lower.term, Term):
                finder.note(lower.term(probe))  # a captured tensor may become a parameter of a set without an operation
            for setting in settings.values():
                finder.note(setting(probe))
        custom = finder.custom

    _refuse_captured(getattr(solver, "transform", None), z0)
    _refuse_functions(lower, theta, z0)
    found = tuple(captured(run).values())
    term = lower.term
    carries = isinstance(term, Term) and any(transformed(leaf) for leaf in tree.leaves(term))
    if not found and not carries and not custom:
        return lower, theta, solver
    carried: Tree = ()
    if carries:
        term, carried = _last, term
    elif not isinstance(term, Term):
        term = _Hoisted(term, found, custom)
    # A linearised objective is wrapped whole: its anchor may be captured, too.
    wrap = partial(_Hoisted, captured=found, custom=custom)
    whole = isinstance(lower.objective, Linearized)
    objective: Objective = wrap(lower.objective) if whole else around(lower.objective, wrap)
    hoisted = replace_objective(lower.with_term(term), objective)
    if settings:
        hoisted_settings: dict[str, Any] = {name: wrap(setting) for name, setting in settings.items()}
        solver = replace(solver, **hoisted_settings)  # type: ignore[type-var]
    return hoisted, (theta, found, carried), solver


def _refuse_captured(transform: Callable[[Tree], Tree] | None, z0: Tree) -> None:
    """Refuse a solver's `transform` that captures what a transform of torch acts on: it has no theta to bring it along.

    Raises:
        StructureError: naming it.
    """

    def run(finder: Finder) -> None:
        start = _again(finder, z0)
        with finder:
            if transform is not None:
                transform(start)

    if captured(run):
        raise StructureError(
            "`transform` captures a tensor on which a torch.func transform acts, and the transform reaches that tensor "
            "only in recorded steps. Use gradient=Unrolled(), or detach the tensor."
        )


def _refuse_functions(lower: LowerProblem, theta: Tree, z0: Tree) -> None:
    """Refuse constraint functions that capture what a transform acts on: they are called outside `_Hoisted`.

    Raises:
        StructureError: if they do.
    """

    layout = Layout.of(z0, batched=lower.batched)

    def run(finder: Finder) -> None:
        term = lower.term if isinstance(lower.term, Term) else lower.term(theta)
        finder.know(term)
        if _written(term):
            with finder:
                term.fit(layout)  # calls the functions

    if captured(run):
        raise StructureError(
            "the functions of `SmoothConstraints` capture a tensor on which a torch.func transform acts, but captured "
            "tensors are constants. Pass it as `theta=`, and take it as an argument: `function(theta, z)`."
        )


def _written(term: object) -> bool:
    """Return whether a set, or a part of it, consists of functions that the user wrote."""
    return isinstance(term, SmoothConstraints) or any(map(_written, getattr(term, "sets", ())))


def _again(finder: Finder, arguments: Tree) -> Tree:
    """Return the arguments as new objects that the finder knows."""
    again = tree.map(lambda leaf: leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf, arguments)
    finder.know(again)
    return again


@dataclass(frozen=True, eq=False)
class _Hoisted:
    """A function of theta (and z) whose captured tensors are replaced by those in the extended theta."""

    function: Callable[..., Any]
    captured: tuple[Tensor, ...]
    custom: bool  # it calls an `autograd.Function`

    def __call__(self, theta: Tree, *z: Tree) -> Any:
        own, brought, _ = theta
        if self.custom:
            return in_transform(self._exchanged, own, brought, *z)
        return self._exchanged(own, brought, *z)

    def _exchanged(self, own: Tree, brought: tuple[Tensor, ...], *z: Tree) -> Any:
        exchange = Exchange({id(old): new for old, new in zip(self.captured, brought, strict=True)})
        with exchange:
            # The function may return a captured tensor itself, without an operation on it.
            return exchange.swapped(self.function(own, *z))


def _last(theta: Tree) -> Term:
    found: Term = theta[2]
    return found
