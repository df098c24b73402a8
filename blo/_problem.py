"""The lower problem, and its restriction to one theta on flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blo import tree
from blo._autocast import Autocast
from blo._autodiff import gradient, transforms_active, value_and_gradient
from blo._layout import Layout
from blo._objective import FixedPoint, Linearized, LinearSlice, PlainSlice, Slice, TiltedSlice, slice_at, under
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

    Raises:
        StructureError: if a constraint and a penalty are both given, since one proximal operator serves one of them;
            if one of them is neither that nor a callable; or if the objective is no function.
        ValueError: if `strong_convexity` is not positive.
    """

    objective: Objective
    constraint: Set | Callable[[Tree], Set] = field(default_factory=lambda: _WHOLE)
    penalty: Penalty | Callable[[Tree], Penalty] | None = None
    batched: bool = False
    strong_convexity: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.strong_convexity is not None and not self.strong_convexity > 0:
            raise ValueError(
                f"`strong_convexity` must be positive, but is {self.strong_convexity}. Leave it out if none is known."
            )
        if not isinstance(self.objective, FixedPoint) and not callable(self.objective):
            raise StructureError(f"`objective` must be a function of theta and z, but is {self.objective!r}.")
        for name, given, kind in (("constraint", self.constraint, Set), ("penalty", self.penalty, Penalty)):
            maker = callable(given) and not isinstance(given, Term)
            if isinstance(given, type) or not (isinstance(given, kind) or maker or given is None):
                found = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
                raise StructureError(
                    f"`{name}` must be a blo {kind.__name__.lower()} or a callable theta -> "
                    f"{kind.__name__.lower()}, but is {found}."
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
        """
        return cls(FixedPoint(function), batched=batched)

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
        if not curvature > 0:
            raise ValueError(f"`curvature` must be positive for the model to have a minimiser, but is {curvature}.")
        model = Linearized(self.objective, tree.detach(anchor), float(curvature), self.batched)
        return replace(self, objective=model, strong_convexity=float(curvature))


@dataclass(frozen=True)
class Bound:
    """A lower problem at one theta, on flat tensors of shape `(*lanes, n)`: all that a lower solver sees.

    Attributes:
        slice: the objective at this theta; where a fixed point is sought, it returns the residual `z - function(z)`.
        term: the constraint set or the penalty.
        theta: the upper variable.
        moving: the term depends on theta.
        symmetric: the slice has values, and its gradient's Jacobian is a Hessian.
        recorded: keep the graph through every gradient, for differentiation through the solver.
        followed: the solver will be differentiated through, in this solve or in one that repeats its steps.
    """

    slice: Slice
    term: Term
    layout: Layout
    theta: Tree
    lifts: int
    moving: bool
    symmetric: bool = True
    recorded: bool = False
    followed: bool = False

    def value(self, z: Tensor) -> Tensor:
        """Return the objective without the penalty, shape `lanes`.

        Raises:
            StructureError: if the objective returns any other shape, or a fixed point is sought.
        """
        if not self.symmetric:
            FixedPoint(lambda theta, z: z)(self.theta, z)
        return self._checked(self.slice(self._unravel(z)), z)

    def sides(self, z: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return two values, shape `lanes`, whose gradients in theta differ by that of `<gradient(z), 2 shift>`.

        This holds up to the third derivative times `shift` cubed. A linearised objective takes its gradient at its
        anchor, so it is looked at on both sides of that, which spares a second backward pass.
        """
        source, at = (self.slice.source, self.slice.anchor) if isinstance(self.slice, LinearSlice) else (self.slice, z)
        ahead, behind = (source(self._unravel(side)) for side in (at + shift, at - shift))
        return self._checked(ahead, z), self._checked(behind, z)

    def _checked(self, value: Tensor, z: Tensor) -> Tensor:
        single = isinstance(value, Tensor) and value.ndim == 0 and z.ndim == 1
        if not single and (not isinstance(value, Tensor) or value.shape != z.shape[:-1]):
            wanted = "a tensor of shape (batch,) because batched=True" if self.layout.lanes else "a scalar tensor"
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StructureError(f"`objective` must return {wanted}, here {tuple(z.shape[:-1])}, but returned {found}.")
        return value

    def gradient(self, z: Tensor) -> Tensor:
        """Return the gradient of the objective in z, or the residual of a fixed point, shape `(*lanes, n)`."""
        if self.symmetric:
            return gradient(self.value, z, create_graph=self.recorded)
        with torch.set_grad_enabled(self.recorded or (transforms_active() and torch.is_grad_enabled())):
            found = self.slice(self._unravel(z))
            return found if self.lifts else self.layout.ravel(found, "the residual of the fixed point")

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective without the penalty and its gradient, shapes `lanes` and `(*lanes, n)`."""
        value, slope = value_and_gradient(self.value, z, create_graph=self.recorded)
        value = value.to(slope.dtype)  # gradients have the dtype of z, whatever the objective computes in
        return value if self.recorded or transforms_active() else value.detach(), slope

    def hessian(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v with the Hessian H of the objective at z; one graph of the gradient serves all products.

        Raises:
            StructureError: if a fixed point is sought, which has no Hessian.
        """
        if not self.symmetric:
            self.value(z)  # refuses
        if transforms_active():
            pullback = torch.func.vjp(self.gradient, z)[1]
            return lambda v: pullback(v)[0]
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            slope = self.record().gradient(point)

        def product(v: Tensor) -> Tensor:
            options = {"retain_graph": True, "create_graph": self.recorded, "materialize_grads": True}
            return torch.autograd.grad(slope, point, v, **options)[0]

        return product

    def penalized(self, z: Tensor) -> Tensor:
        """Return the objective with the penalty, shape `lanes`; constraints are the caller's business."""
        value = self.value(z)
        return value + self.term.value(z) if isinstance(self.term, Penalty) else value

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal point of the penalty for this step, or the nearest point of the constraint set."""
        return self.term.prox(z, step)

    def residual(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return `unit |z - prox(z - slope / unit)|`, zero exactly at stationary points, shape `lanes`."""
        return residual(self.term, z, slope, unit).detach()

    def motion(self, origin: Term, z: Tensor) -> Tensor:
        """Return how far the term's face carries z when theta moves the term away from `origin`."""
        return self.term.motion(origin, z) if self.moving else torch.zeros_like(z)

    def detach(self) -> Bound:
        """Return the same problem with theta held constant, sharing what was computed for this theta."""
        return replace(self, slice=self.slice.detach(), theta=tree.detach(self.theta), recorded=False)

    def record(self) -> Bound:
        """Return the same problem, keeping the graph through every gradient."""
        return replace(self, recorded=True, followed=True)

    def tilt(self, slope: Tensor) -> Bound:
        """Return the problem with `<slope, z>` added to its objective, for a constant slope of z's shape."""

        def ravel(z: Tree) -> Tensor:
            flat: Tensor = z if self.lifts else self.layout.ravel(z)
            return flat

        return replace(self, slice=TiltedSlice(self.slice, slope, ravel))

    def _unravel(self, z: Tensor) -> Tree:
        return z if self.lifts else self.layout.unravel(z)


def residual(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return `unit |z - prox(z - slope / unit)|`, the natural residual of first-order optimality, shape `lanes`."""
    if isinstance(term, Free):
        left = slope  # of which the difference would leave nothing beside a large z, by rounding
    elif unit is None:
        left = z - term.prox(z - slope, 1.0)
    else:
        left = unit * (z - term.prox(z - slope / unit, 1 / unit))
    distance: Tensor = torch.linalg.vector_norm(left, dim=-1)
    return distance


@dataclass(frozen=True)
class FlatProblem:
    """A lower problem for a given structure of theta and z, `lifts` times mapped over by `vmap`.

    Each lift adds a leading lane axis to z and a leading axis to every leaf of theta: the image of a problem
    under `vmap` is a batched problem, solved with the same code.

    Attributes:
        randomness: of each lift: what the `vmap` that it stands for was told of random operations.
    """

    lower: LowerProblem
    layout: Layout
    spec: tree.TreeSpec
    randomness: tuple[str, ...] = ()

    @classmethod
    def of(cls, lower: LowerProblem, theta: Tree, z0: Tree) -> tuple[FlatProblem, Tensor, list[Tensor]]:
        """Return the problem, the flat start and the leaves of theta."""
        autocast = Autocast.current()
        if autocast.on:
            lower = replace(lower, objective=under(lower.objective, autocast))
        layout = Layout.of(z0, batched=lower.batched)
        leaves, spec = tree.flatten(theta, "theta")
        return cls(lower, layout, spec), layout.ravel(z0).detach(), leaves

    @property
    def lifts(self) -> int:
        """How often the problem is mapped over."""
        return len(self.randomness)

    def lift(self, randomness: str) -> FlatProblem:
        """Return the problem with one more mapped axis."""
        return replace(self, randomness=(*self.randomness, randomness))

    @property
    def symmetric(self) -> bool:
        """Whether the lower optimality condition is the gradient of an objective."""
        return not isinstance(self.lower.objective, FixedPoint)

    def bind(self, leaves: Sequence[Tensor]) -> Bound:
        """Return the problem at the theta with these leaves."""
        theta = tree.unflatten(leaves, self.spec)
        if self.lifts:
            term, bound = self._lifted_term(leaves), self._lifted_slice(leaves)
        else:
            term, bound = self._term(theta), slice_at(self._evaluate, theta)
        return Bound(bound, term, self.layout, theta, self.lifts, self._moving, self.symmetric)

    def term(self, leaves: Sequence[Tensor]) -> Term:
        """Return the non-smooth term at the theta with these leaves, without evaluating the objective."""
        return self._term(tree.unflatten(leaves, self.spec))

    @property
    def _evaluate(self) -> Callable[[Tree, Tree], Tree]:
        objective = self.lower.objective
        if not isinstance(objective, FixedPoint):
            return objective
        function = objective.function
        return lambda theta, z: tree.map(lambda at, to: at - to, z, function(theta, z))

    @property
    def _moving(self) -> bool:
        return not isinstance(self.lower.term, Term)

    def _lifted_slice(self, leaves: Sequence[Tensor]) -> Slice:
        evaluate, layout = self._evaluate, self.layout

        def value(leaves: Sequence[Tensor], z: Tensor) -> Tensor:
            found = evaluate(tree.unflatten(leaves, self.spec), layout.unravel(z))
            return found if self.symmetric else layout.ravel(found, "the residual of the fixed point")

        for randomness in self.randomness:
            value = torch.vmap(value, randomness=randomness)
        return PlainSlice(value, list(leaves))

    def _lifted_term(self, leaves: Sequence[Tensor]) -> Term:
        if not self._moving:
            return self._term(leaves)
        specs: list[tree.TreeSpec] = []

        def parameters(*leaves: Tensor) -> tuple[Tensor, ...]:
            tensors, spec = tree.flatten(self._term(tree.unflatten(leaves, self.spec)), "constraint")
            specs.append(spec)
            return tuple(tensors)

        for _ in range(self.lifts):
            parameters = torch.vmap(parameters)
        mapped = parameters(*leaves)
        lifted: Term = tree.unflatten(mapped, specs[0])
        return lifted

    def _term(self, theta: Tree) -> Term:
        given = self.lower.term
        found = given if isinstance(given, Term) else given(theta)
        name, kind = ("constraint", Set) if self.lower.penalty is None else ("penalty", Penalty)
        if not isinstance(found, kind):
            raise StructureError(
                f"`{name}` must be a blo {kind.__name__.lower()}, or a callable theta -> {kind.__name__.lower()}, "
                f"but gave {type(found).__name__}."
            )
        slack: float = getattr(found, "slack", 0.0)
        if slack < 0:
            raise ValueError(f"`{type(found).__name__}.slack` must not be negative, but is {slack}.")
        return found.fit(self.layout)
