"""The lower problem as a user writes it, in trees of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from blo import tree
from blo._arguments import require_function
from blo._objective import Batched, FixedPointMap, Indexed, LeastSquares, Linearized, WithoutAux, around
from blo._settings import require_positive
from blo._term import Term
from blo._types import Objective, Tree
from blo.errors import StructureError
from blo.penalties import Penalty
from blo.sets import Free, Set

#: One object for all problems: `torch.compile` does not trace the making of one.
_WHOLE = Free()


@dataclass(frozen=True)
class LowerProblem:
    """`minimise objective(theta, z) over z in constraint`, or `minimise objective(theta, z) + penalty(z)`.

    Args:
        objective: `objective(theta, z)` returns a tensor of shape `()`, or of shape `(batch,)` when `batched`.
        constraint: a set, or a callable `theta -> set` when the set moves with theta; by default `Free()`.
        penalty: a penalty, or a callable `theta -> penalty` when its weight depends on theta.
        batched: the first axis of every leaf of z numbers independent problems, solved, projected and
            differentiated together.
        strong_convexity: a number mu > 0 such that `objective - mu/2 |z|^2` is convex in z, if one is known: a ridge
            weight, say. Reports then bound the errors of the lower solution and of the adjoint.
        batches: a minibatch for each step of the solver: a function of the number of the step, from 0, which returns
            the same whenever it is called with the same number, or a sequence, which begins again after its end. Then
            the objective is `objective(theta, z, batch)`. It takes a fixed number of steps of `ProjectedGradient`,
            `TorchOpt` or `TorchOptim`, and `Unrolled` or `Zero`, since no point solves such a problem.
        has_aux: the objective returns `(loss, aux)`, of which blo takes the loss.

    Raises:
        StructureError: if a constraint and a penalty are both given, since one proximal operator serves one of them;
            if one of them is neither that nor a callable; or if the objective is not a function of theta and z, in this
            order as far as the names of its parameters tell; or if `batches` is no function or sequence.
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
        made = FixedPointMap | LeastSquares | Linearized | Batched | WithoutAux
        if not isinstance(self.objective, made):
            batch = () if self.batches is None else ("a batch",)
            require_function(self.objective, "objective", "theta", "z", *batch)
            if self.has_aux:
                object.__setattr__(self, "objective", WithoutAux(self.objective))
        if self.batches is not None:
            object.__setattr__(self, "objective", _with_batches(self.objective, self.batches))
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
                "`LowerProblem` takes a `constraint` or a `penalty`, but got both. Write the smooth one of the two "
                "into the objective, or a class of your own with the proximal operator of their sum."
            )

    @property
    def term(self) -> Term | Callable[[Tree], Term]:
        """The non-smooth term: the constraint or the penalty, or what makes it from theta."""
        return self.constraint if self.penalty is None else self.penalty

    def with_term(self, term: Term | Callable[[Tree], Term]) -> LowerProblem:
        """Return the problem with another non-smooth term of the same kind."""
        if self.penalty is None:
            return replace(self, constraint=term)  # type: ignore[arg-type]
        return replace(self, penalty=term)  # type: ignore[arg-type]

    @classmethod
    def fixed_point(cls, function: Callable[[Tree, Tree], Tree], *, batched: bool = False) -> LowerProblem:
        """Return the problem of finding `z = function(theta, z)`: an equilibrium instead of a minimum.

        The implicit gradient is that of `z - function(theta, z) = 0`, whose Jacobian is in general not symmetric
        (Bai, Kolter and Koltun, NeurIPS 2019, deep equilibrium models).

        Args:
            function: `function(theta, z)` returns a tree like z.
            batched: as in `LowerProblem`; then `function` keeps the problems of a batch apart.

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

        It is like any other, and `LevenbergMarquardt` makes use of the Jacobian of the residuals. Its derivative is
        that of the minimiser, with the whole Hessian, unless `Implicit(hessian="gauss-newton")` asks for an
        approximation.

        Args:
            residual: `residual(theta, z)` returns a real tensor of any shape, whose first axis numbers the problems
                when `batched`.
            constraint: as in `LowerProblem`.
            penalty: likewise.
            batched: likewise.
            strong_convexity: likewise.

        Raises:
            StructureError: if `residual` is no function of theta and z; and as `LowerProblem` does.
        """
        require_function(residual, "residual", "theta", "z")
        return cls(LeastSquares(residual, batched), constraint, penalty, batched, strong_convexity=strong_convexity)

    def linearize(self, anchor: Tree, curvature: float) -> LowerProblem:
        """Return the problem with its objective replaced by a first-order model and a proximal term.

        The model is `<grad_z objective(theta, anchor), z - anchor> + curvature/2 |z - anchor|^2`: one projected
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
        return replace(self, objective=model, strong_convexity=float(curvature))


def _with_batches(objective: Callable[..., Any], batches: Callable[[int], Any] | Sequence[Any]) -> Objective:
    """Return the objective of all steps.

    Raises:
        StructureError: if the objective takes no batch, or there is none.
    """
    if isinstance(objective, Batched):
        return objective
    if isinstance(objective, FixedPointMap | LeastSquares | Linearized):
        raise StructureError(
            "`batches` needs a plain `objective(theta, z, batch)`, which sums of squares, linearised problems and "
            "fixed points are not. Write the sum or the model into the objective."
        )
    if not callable(batches) and not (isinstance(batches, Sequence | Tensor) and len(batches) > 0):
        raise StructureError(
            "`batches` must be a function of the number of a step, or a sequence that is not empty, but is of type "
            f"{type(batches).__name__}. A loader is read once, but steps are made again: take `list(loader)`."
        )
    return Batched(Indexed(objective, batches))


def wrapped(lower: LowerProblem, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> LowerProblem:
    """Return the problem with the function of its objective wrapped: a copy that is not checked again."""
    return replace_objective(lower, around(lower.objective, wrap))


def replace_objective(lower: LowerProblem, objective: Objective) -> LowerProblem:
    """Return the problem with another objective: a copy that is not checked again."""
    other = object.__new__(type(lower))
    vars(other).update(vars(lower), objective=objective)
    return other
