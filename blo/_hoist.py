"""Makes captured tensors arguments, so that `torch.func` transforms reach them.

An objective captures its data. When `vmap` or `grad` acts on that data, an `autograd.Function` sees it too late: its
backward pass runs outside the transform. So under a transform the captured tensors that belong to it are found by
running the objective once, and travel through `argmin` as a part of theta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from blo import tree
from blo._lower import LowerProblem, replace_objective
from blo._objective import FixedPointMap, Linearized, Minibatched, around
from blo._term import Term
from blo._torch import functorch
from blo._types import Objective, Tree
from blo.errors import StructureError
from blo.solvers import Solver, functions_of_theta


def hoist(
    lower: LowerProblem, theta: Tree, z0: Tree, solver: Solver | None
) -> tuple[LowerProblem, Tree, Solver | None]:
    """Return an equal problem whose theta is `(theta, captured tensors, parameters of a captured set or penalty)`.

    The settings of the solver that are functions of theta become functions of that.
    """
    settings = {} if solver is None else functions_of_theta(solver)
    probe, start = _again(theta), _again(z0)
    finder = _Finder([*tree.leaves(probe), *tree.leaves(start)])
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
    _refuse_captured(getattr(solver, "transform", None), z0)
    captured = tuple(finder.found.values())
    term = lower.term
    carries = isinstance(term, Term) and any(_transformed(leaf) for leaf in tree.leaves(term))
    if not captured and not carries:
        return lower, theta, solver
    carried: Tree = ()
    if carries:
        term, carried = _last, term
    elif not isinstance(term, Term):
        term = _Hoisted(term, captured)
    # A linearised objective is wrapped whole: its anchor may be captured, too.
    wrap = partial(_Hoisted, captured=captured)
    whole = isinstance(lower.objective, Linearized)
    objective: Objective = wrap(lower.objective) if whole else around(lower.objective, wrap)
    hoisted = replace_objective(lower.with_term(term), objective)
    if settings:
        hoisted_settings: dict[str, Any] = {name: wrap(setting) for name, setting in settings.items()}
        solver = replace(solver, **hoisted_settings)  # type: ignore[type-var]
    return hoisted, (theta, captured, carried), solver


def _refuse_captured(transform: Callable[[Tree], Tree] | None, z0: Tree) -> None:
    """Refuse a solver's `transform` that captures what a transform of torch acts on: it has no theta to bring it along.

    Raises:
        StructureError: naming it.
    """
    start = _again(z0)
    finder = _Finder(tree.leaves(start))
    if transform is not None:
        with finder:
            transform(start)
    if finder.found:
        raise StructureError(
            "`transform` captures a tensor on which a torch.func transform acts, and the transform reaches that tensor "
            "only in recorded steps. Use gradient=Unrolled(), or detach the tensor."
        )


def _again(arguments: Tree) -> Tree:
    """Return the arguments as other objects: a function may capture the very tensors that are also its arguments."""
    return tree.map(lambda leaf: leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf, arguments)


@dataclass(frozen=True, eq=False)
class _Hoisted:
    """A function of theta (and z) whose captured tensors are replaced by those in the extended theta."""

    function: Callable[..., Any]
    captured: tuple[Tensor, ...]

    def __call__(self, theta: Tree, *z: Tree) -> Any:
        own, brought, _ = theta
        exchange = _Exchange({id(old): new for old, new in zip(self.captured, brought, strict=True)})
        with exchange:
            # The function may return a captured tensor itself, without an operation on it.
            return exchange.swapped(self.function(own, *z))


def _last(theta: Tree) -> Term:
    found: Term = theta[2]
    return found


class _Finder(TorchFunctionMode):
    """Records the tensors of a transform that enter torch functions but are not results of one: the captured ones."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        # Tensors are kept alive here, since an id is unique among living objects only.
        self._known = {id(tensor): tensor for tensor in known}
        self.found: dict[int, Tensor] = {}

    def note(self, used: Tree) -> None:
        """Record what is captured among the leaves of a tree."""
        for leaf in tree.leaves(used):
            if isinstance(leaf, Tensor) and id(leaf) not in self._known and _transformed(leaf):
                self.found[id(leaf)] = leaf

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.note((args, kwargs))
        result = function(*args, **kwargs)
        self._known.update({id(leaf): leaf for leaf in tree.tensors(result)})
        return result


class _Exchange(TorchFunctionMode):
    """Replaces some tensors among the arguments of torch functions by others."""

    def __init__(self, replacement: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._replacement = replacement

    def swapped(self, used: Tree) -> Tree:
        """Return a tree in which these tensors are replaced."""
        return tree.map(lambda leaf: self._replacement.get(id(leaf), leaf), used)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = self.swapped((args, dict(kwargs or {})))
        return function(*args, **kwargs)


def _transformed(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and bool(functorch.is_functorch_wrapped_tensor(leaf))
