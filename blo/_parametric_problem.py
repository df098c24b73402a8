"""The lower problem on flat tensors, for one structure of theta and z and any values of theta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from blo import tree
from blo._autocast import Autocast, Under, without
from blo._layout import Layout
from blo._look import Searched
from blo._lower import LowerProblem, replace_objective
from blo._objective import FixedPointMap, LeastSquares, Linearized, Minibatched, PlainSlice, Slice, around
from blo._problem_at_theta import ProblemAtTheta
from blo._term import Term
from blo._theta import Structure
from blo._types import Tree
from blo.errors import BloError, StructureError
from blo.penalties import Penalty
from blo.sets import Set


@dataclass(frozen=True)
class ParametricProblem:
    """A `LowerProblem` on flat tensors, with theta as its parameter: `bind` returns the `ProblemAtTheta`.

    `vmap` maps over the problem `lifts` times. Each lift adds a leading lane axis to z and a leading axis to every leaf
    of theta: the image of a problem under `vmap` is a batched problem, and the same code solves it.

    Attributes:
        lower: the problem as the user wrote it.
        layout: the layout of z in flat tensors.
        structure: the structure of theta.
        searched: the user's function, with what has been found out about it.
        randomness: the option `randomness` of each `vmap`, from the innermost to the outermost.
        eps: as in `ProblemAtTheta`.
        accuracy: as in `ProblemAtTheta`.
        carried: as in `ProblemAtTheta`.
    """

    lower: LowerProblem
    layout: Layout
    structure: Structure
    searched: Searched
    randomness: tuple[str, ...] = ()
    eps: float | None = None
    accuracy: float = 0.0
    carried: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, lower: LowerProblem, theta: Tree, z0: Tree) -> tuple[ParametricProblem, Tensor, list[Tensor]]:
        """Return the problem, the flat start and the leaves of theta, as real tensors."""
        searched: list[Searched] = []

        def search(function: Callable[..., Any]) -> Searched:
            searched.append(Searched(function))
            return searched[-1]

        lower = replace_objective(lower, around(lower.objective, search))
        layout = Layout.of(z0, batched=lower.batched)
        structure, leaves = Structure.of(theta)
        # Copy the start: a solver that makes no step returns it, and results must not share memory with arguments.
        start = layout.ravel(z0).detach().clone()
        return cls(lower, layout, structure, searched[0]), start, leaves

    def under(self, autocast: Autocast) -> ParametricProblem:
        """Return the problem with an objective that is always evaluated under the given state of autocast."""
        objective = around(self.lower.objective, lambda f: Under(f, autocast))
        lower = replace_objective(self.lower, objective)
        return replace(self, lower=lower, eps=autocast.eps(self.layout.device.type))

    @without
    def runs(self, leaves: Sequence[Tensor], z: Tensor) -> bool:
        """Return whether the objective runs without autocast: some objectives need it."""
        try:
            with torch.no_grad():
                self.slice([leaf.detach() for leaf in leaves], 0)(z)
        except RuntimeError as error:
            return isinstance(error, BloError)  # the solve will raise it again
        return True

    @property
    def lifts(self) -> int:
        """The number of `vmap` levels around the problem."""
        return len(self.randomness)

    def lift(self, randomness: str) -> ParametricProblem:
        """Return the problem with one more mapped axis."""
        return replace(self, randomness=(*self.randomness, randomness))

    @property
    def symmetric(self) -> bool:
        """Whether the lower optimality condition is the gradient of an objective."""
        return not isinstance(self.lower.objective, FixedPointMap)

    def bind(self, leaves: Sequence[Tensor]) -> ProblemAtTheta:
        """Return the problem at the theta with these leaves."""
        objective = self.lower.objective
        return ProblemAtTheta(
            self.slice(leaves),
            self.term(leaves),
            self.layout,
            self.structure.tree(leaves),
            leaves,
            self,
            self.lifts,
            not isinstance(self.lower.term, Term),
            self.symmetric,
            eps=self.eps,
            accuracy=self.accuracy,
            carried=self.carried,
            stepwise=isinstance(objective, Minibatched),
            residuals=self._flat(objective.vector, leaves) if isinstance(objective, LeastSquares) else None,
        )

    def slice(self, leaves: Sequence[Tensor], step: int | None = None) -> Slice:
        """Return the objective at the theta with these leaves; for minibatches, that of one step."""
        objective, layout = self.lower.objective, self.layout
        if isinstance(objective, Linearized) and not self.lifts:
            return objective.at(self.structure.tree(leaves), layout)
        if isinstance(objective, Minibatched) and step is not None:
            objective = replace(objective, step=step)
        if not isinstance(objective, FixedPointMap):
            return self._flat(objective, leaves)
        function = objective.function

        def residual(theta: Tree, z: Tree) -> Tensor:
            to = function(theta, z)
            _require_like(to, z)
            # z - f(z), not f(z) - z: for a contraction the eigenvalues of its Jacobian have positive real parts, as
            # those of a Hessian at a minimum, and a gradient step of size one is the iteration z <- f(z).
            return layout.ravel(tree.map(torch.sub, z, to), "the residual of the fixed point")

        return self._flat(residual, leaves)

    def _flat(self, function: Callable[[Tree, Tree], Tensor], leaves: Sequence[Tensor]) -> PlainSlice:
        """Return a function of trees as a function of a flat z, at the theta with these leaves."""
        structure, layout = self.structure, self.layout
        if self.lifts:
            lifted = self._over_lanes(lambda leaves, z: function(structure.tree(leaves), layout.unravel(z)))
            return PlainSlice(lifted, list(leaves))
        # Make the theta once: `Searched` recognises the theta of its last call by its identity.
        return PlainSlice(lambda theta, z: function(theta, layout.unravel(z)), structure.tree(leaves))

    def _over_lanes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of one lane as a function of all lanes that `vmap` has added."""
        for randomness in self.randomness:
            function = torch.vmap(function, randomness=randomness)
        return function

    def term(self, leaves: Sequence[Tensor]) -> Term:
        """Return the non-smooth term at the theta with these leaves, without evaluating the objective."""
        if not self.lifts or isinstance(self.lower.term, Term):
            return self._given(leaves).fit(self.layout)
        specs: list[tree.TreeSpec] = []

        def parameters(*leaves: Tensor) -> tuple[Tensor, ...]:
            tensors, spec = tree.flatten(self._given(leaves).fit(self.layout), "constraint")
            specs.append(spec)
            return tuple(tensors)

        for _ in range(self.lifts):
            parameters = torch.vmap(parameters)
        mapped = parameters(*leaves)
        lifted: Term = tree.unflatten(mapped, specs[0])
        return lifted

    def place(self, start: Callable[[Tree], Tree], leaves: Sequence[Tensor]) -> Tensor:
        """Return the value of `start` at these leaves of theta, shape `(*lanes, n)`.

        Raises:
            StructureError: if it does not return a tree like z0.
        """

        def flat(*leaves: Tensor) -> Tensor:
            return self.layout.ravel(start(self.structure.tree(leaves)), "start(theta)")

        # Copy the start: if it were a leaf of theta itself, derivatives in z would include those in theta.
        found: Tensor = self._over_lanes(flat)(*leaves)
        return found.clone()

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Apply a function of trees like z to a flat z, shape `(*lanes, n)`.

        Raises:
            StructureError: if it does not return a tree like z.
        """

        def flat(z: Tensor) -> Tensor:
            return self.layout.ravel(function(self.layout.unravel(z)), name)

        found: Tensor = self._over_lanes(flat)(z)
        return found

    def at(self, function: Callable[[Tree], Any], name: str, leaves: Sequence[Tensor]) -> Any:
        """Return the solver's setting `name` at these leaves of theta, for each lane separately.

        Raises:
            StructureError: under `vmap`, if the function does not return a tensor.
        """

        def found(*leaves: Tensor) -> Any:
            value = function(self.structure.tree(leaves))
            if self.lifts and not isinstance(value, Tensor):
                raise StructureError(
                    f"`{name}(theta)` must return a tensor under `vmap`, but returned {type(value).__name__}. Use "
                    "gradient=Unrolled(), a number, or problems with batched=True."
                )
            return value

        return self._over_lanes(found)(*leaves)

    def apart(self, leaves: Sequence[Tensor]) -> Set:
        """Return the constraint at the theta with these leaves, see `Set.apart`."""
        return cast(Set, self._given(leaves)).apart(self.layout)

    def _given(self, leaves: Sequence[Tensor]) -> Term:
        """Return the set or the penalty at the theta with these leaves, as the user wrote it."""
        given = self.lower.term
        found = given if isinstance(given, Term) else given(self.structure.tree(leaves))
        name, kind = ("constraint", Set) if self.lower.penalty is None else ("penalty", Penalty)
        if not isinstance(found, kind):
            raise StructureError(
                f"`{name}` must be a blo {kind.__name__.lower()}, or a callable theta -> {kind.__name__.lower()}, "
                f"but returned {type(found).__name__}."
            )
        _require_slack(found)
        return found


def _require_slack(term: Term) -> None:
    """Check that no slack is negative, also in the parts of a product or an intersection.

    Raises:
        ValueError: if one is.
    """
    slack: float = getattr(term, "slack", 0.0)
    if slack < 0:
        raise ValueError(f"`{type(term).__name__}.slack` must not be negative, but is {slack}.")
    for part in getattr(term, "sets", ()):
        _require_slack(part)


def _require_like(found: Tree, z: Tree) -> None:
    """Check that the map of a fixed-point problem returns a tree like z: the subtraction would broadcast other shapes.

    Raises:
        StructureError: if structure or shapes differ from those of z.
    """
    leaves, spec = tree.flatten(found, "function(theta, z)")
    expected, wanted = tree.flatten(z)
    shapes = [[tuple(leaf.shape) for leaf in side] for side in (expected, leaves)]
    if spec != wanted or shapes[0] != shapes[1]:
        raise StructureError(
            f"`function(theta, z)` must return a tree like z, of shapes {shapes[0]}, but returned shapes {shapes[1]}"
            + ("." if spec == wanted else f" in the structure {spec}, where z has {wanted}.")
        )
