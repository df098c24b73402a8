"""The lower problem as a user writes it, in trees of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from blo import tree
from blo._arguments import require_function
from blo._objective import (
    FixedPointMap,
    Indexed,
    LeastSquares,
    Linearized,
    Minibatched,
    WithoutAux,
    as_given,
    with_lanes,
)
from blo._settings import require_positive
from blo._term import Term
from blo._types import Objective, Tree
from blo.errors import StructureError
from blo.penalties import Penalty
from blo.sets import Free, Set

#: The default constraint, one object for all problems: `torch.compile` cannot trace its construction.
_WHOLE = Free()


@dataclass(frozen=True)
class LowerProblem:
    """`minimise objective(theta, z) over z in constraint`, or `minimise objective(theta, z) + penalty(z)`.

    Args:
        objective: `objective(theta, z)` returns a tensor of shape `()`, or of shape `(batch,)` if `batched`.
        constraint: a set, or a callable `theta -> set` if the set moves with theta; by default `Free()`.
        penalty: a penalty, or a callable `theta -> penalty` if its weight depends on theta.
        batched: the first axis of every leaf of z indexes independent problems, the lanes, which are solved, projected
            and differentiated together. Without it there is one lane, and the shape `lanes` is `()`.
        strong_convexity: a known number mu > 0 such that `objective - mu/2 |z|^2` is convex in z, for example a ridge
            weight. Reports then bound the errors of the lower solution and of the adjoint.
        batches: a minibatch for each step of the solver: a function of the step number, counted from 0, that returns
            the same batch whenever it gets the same number; or a sequence, which is repeated. The objective is then
            `objective(theta, z, batch)`. This needs a fixed number of steps of `ProjectedGradient`, `TorchOpt` or
            `TorchOptim`, and the strategy `Unrolled` or `Zero`, because such a problem has no solution.
        has_aux: the objective returns `(loss, aux)`; blo minimises the loss and ignores `aux`.

    Raises:
        StructureError: if both a constraint and a penalty are given, as solvers use one proximal operator; if one of
            them has the wrong type; if the objective is not a function of theta and z, in this order according to the
            names of its parameters; or if `batches` is neither a function nor a sequence.
        ValueError: if `strong_convexity` is not positive.
    """

    objective: Objective
    constraint: Set | Callable[[Tree], Set] = field(default_factory=lambda: _WHOLE)
    penalty: Penalty | Callable[[Tree], Penalty] | None = None
    batched: bool = False
    strong_convexity: float | None = field(default=None, kw_only=True)
    batches: Callable[[int], Any] | Sequence[Any] | None = field(default=None, kw_only=True)
    has_aux: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.strong_convexity is not None:
            require_positive(self.strong_convexity, "strong_convexity", "Leave it out if none is known.")
        # `dataclasses.replace` passes on the fields of another problem, which were derived from its other fields.
        object.__setattr__(self, "objective", self._derived(as_given(self.objective)))
        for name, given, kind in (("constraint", self.constraint, Set), ("penalty", self.penalty, Penalty)):
            maker = callable(given) and not isinstance(given, Term)
            missing = given is None and name == "penalty"
            if isinstance(given, type) or not (isinstance(given, kind) or maker or missing):
                found = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
                raise StructureError(
                    f"`{name}` must be a blo {kind.__name__.lower()} or a callable theta -> {kind.__name__.lower()}, "
                    f"but is {found}." + (" For no constraint leave it out." if given is None else "")
                )
        if self.penalty is not None and not isinstance(self.constraint, Free):
            raise StructureError(
                "`LowerProblem` takes a `constraint` or a `penalty`, but got both. If the penalty is smooth, add it to "
                "the objective; otherwise write a class with the proximal operator of the sum of both."
            )

    def _derived(self, objective: Callable[..., Any]) -> Objective:
        """Return the objective that blo evaluates: for these lanes, without `aux`, with a batch for each step."""
        # A classmethod, `linearize` or an earlier construction has checked these.
        if not isinstance(objective, FixedPointMap | LeastSquares | Linearized | Minibatched):
            batch = () if self.batches is None else ("a batch",)
            require_function(objective, "objective", "theta", "z", *batch)
            if self.has_aux:
                objective = WithoutAux(objective)
        if self.batches is not None:
            return _with_batches(objective, self.batches)
        return with_lanes(objective, self.batched)

    @property
    def term(self) -> Term | Callable[[Tree], Term]:
        """The non-smooth term: the constraint or the penalty, or a function of theta that returns it."""
        return self.constraint if self.penalty is None else self.penalty

    @property
    def modulus(self) -> float | None:
        """The modulus of strong convexity that is known: that of a linearised objective, or `strong_convexity`."""
        return self.objective.curvature if isinstance(self.objective, Linearized) else self.strong_convexity

    def with_term(self, term: Term | Callable[[Tree], Term]) -> LowerProblem:
        """Return the problem with another non-smooth term of the same kind."""
        if self.penalty is None:
            return replace(self, constraint=term)  # type: ignore[arg-type]
        return replace(self, penalty=term)  # type: ignore[arg-type]

    @classmethod
    def fixed_point(cls, function: Callable[[Tree, Tree], Tree], *, batched: bool = False) -> LowerProblem:
        """Return the problem of finding `z = function(theta, z)`: an equilibrium instead of a minimum.

        The implicit gradient is that of the equation `z - function(theta, z) = 0`, whose Jacobian is in general not
        symmetric (Bai, Kolter and Koltun, NeurIPS 2019, deep equilibrium models).

        Args:
            function: `function(theta, z)` returns a tree like z.
            batched: as in `LowerProblem`; `function` must treat the problems of a batch independently.

        Raises:
            StructureError: if `function` is not a function of theta and z.
        """
        require_function(function, "function", "theta", "z")
        return cls(FixedPointMap(function), batched=batched)

    @classmethod
    def least_squares(
        cls,
        residual: Callable[[Tree, Tree], Tensor],
        constraint: Set | Callable[[Tree], Set] = _WHOLE,
        penalty: Penalty | Callable[[Tree], Penalty] | None = None,
        batched: bool = False,
        *,
        strong_convexity: float | None = None,
    ) -> LowerProblem:
        """Return the problem of minimising `1/2 |residual(theta, z)|^2`.

        Every solver and strategy takes this problem. `LevenbergMarquardt` also uses the Jacobian of the residuals. The
        hypergradient uses the full Hessian, unless `Implicit(hessian="gauss-newton")` approximates it.

        Args:
            residual: `residual(theta, z)` returns a real tensor of any shape; if `batched`, its first axis numbers the
                problems.
            constraint: as in `LowerProblem`.
            penalty: as in `LowerProblem`.
            batched: as in `LowerProblem`.
            strong_convexity: as in `LowerProblem`.

        Raises:
            StructureError: if `residual` is not a function of theta and z; and as in `LowerProblem`.
        """
        require_function(residual, "residual", "theta", "z")
        return cls(LeastSquares(residual, batched), constraint, penalty, batched, strong_convexity=strong_convexity)

    def linearize(self, anchor: Tree, curvature: float) -> LowerProblem:
        """Return the problem with its objective replaced by a first-order model and a proximal term.

        The model is `<grad_z objective(theta, anchor), z - anchor> + curvature/2 |z - anchor|^2`. One projected
        gradient step of size `1/curvature` from the anchor solves it exactly, and its Hessian in z is `curvature`
        times the identity (Zhang et al., ICML 2022, Sec. 4).

        Args:
            anchor: a tree like z; a constant.
            curvature: the proximal weight, in units of objective over z squared; positive.

        Raises:
            ValueError: if the curvature is not positive.
        """
        require_positive(curvature, "curvature", "Otherwise the model has no minimiser.")
        model = Linearized(self.objective, tree.detach(anchor), float(curvature), self.batched)
        return replace(self, objective=model, strong_convexity=None)


def _with_batches(objective: Callable[..., Any], batches: Callable[[int], Any] | Sequence[Any]) -> Objective:
    """Return the objective with a batch for each step.

    Raises:
        StructureError: if the objective is not a plain function, or `batches` is empty or has the wrong type.
    """
    if isinstance(objective, Minibatched):
        return objective
    if isinstance(objective, FixedPointMap | LeastSquares | Linearized):
        raise StructureError(
            "`batches` needs a plain `objective(theta, z, batch)`, but this is a least-squares, linearised or "
            "fixed-point problem. Write the sum of squares or the model as a plain objective."
        )
    if not callable(batches) and not (isinstance(batches, Sequence | Tensor) and len(batches) > 0):
        raise StructureError(
            "`batches` must be a function of the number of a step or a non-empty sequence, but is of type "
            f"{type(batches).__name__}. A data loader can be read only once, but steps may be repeated: pass "
            "`list(loader)`."
        )
    return Minibatched(Indexed(objective, batches))


def replace_objective(lower: LowerProblem, objective: Objective) -> LowerProblem:
    """Return a copy of the problem with another objective; the copy is not checked again."""
    # `dataclasses.replace` would run `__post_init__`, whose checks of the signature do not apply to wrapped functions.
    other = object.__new__(type(lower))
    vars(other).update(vars(lower), objective=objective)
    return other
