"""The interface of the non-smooth part of a lower problem: its proximal operator and its smooth face at a solution.

Such a term is the indicator of a constraint set or a penalty. A face is a smooth piece of it, along which the solution
can move in both directions. Vectors are flat, shape `(*lanes, n)`: the last axis holds coordinates, and each leading
index is a separate problem. Everything is a tensor function of its arguments without branches on their values, so that
`torch.func` transforms and a second backward pass work through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import as_tensor, plain, repeated, settled, transforms_active
from blo._layout import Layout
from blo._types import Tree
from blo.errors import StructureError

#: A set with an extent below this is small: a residual of the size of the set may be below a solver's tolerance.
_SMALL = 1e-3
#: The share of its extent with which errors of z in a small set are compared.
_MARGIN = 0.1


class Counts(NamedTuple):
    """How many directions of each lane are free, held and undecided; integer tensors of shape `lanes`.

    Attributes:
        free: dimension of the tangent space (the rank of P).
        active: `n - free`, directions that the term holds.
        degenerate: active constraints whose multiplier cannot be distinguished from zero: it is at most
            `sqrt(eps) max|gradient| + max|P gradient|`, with eps of the dtype. Also constraints within `slack` whose
            distance and multiplier differ by a factor of less than 1,000.
    """

    free: Tensor
    active: Tensor
    degenerate: Tensor


class Carry(NamedTuple):
    """The motion of z with a face, where it needs multipliers: of two bounds within `slack` of z, one is active.

    Attributes:
        instead: the `Term.motion` that it replaces. A subclass, or a set around the one that made the tangent, may have
            another `motion`, which is then used.
        of: `(term, z)` -> the motion when the term becomes `term`.
    """

    instead: Callable[..., Tensor]
    of: Callable[[Any, Tensor], Tensor]


class Strain(NamedTuple):
    """Active constraints that are linearly dependent.

    Attributes:
        surplus: returns the number of active constraints minus the number of independent ones, shape `lanes`.
        of: `(term, z)` -> the motion of each constraint when the term becomes `term`, and the part of it that no motion
            of z can follow, both `(*lanes, k)`. If theta changes the latter, the solution has one-sided derivatives
            only.
    """

    surplus: Callable[[], Tensor]
    of: Callable[[Any, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Tangent:
    """The term near a solution, to second order.

    Attributes:
        projector: v -> P v, the orthogonal projector on the directions that stay on the face.
        curvature: diagonal of K, where K is diagonal and commutes with P; broadcasts against `(*lanes, n)`. K is the
            second derivative of the term along its face; for a set, the curvature of the active boundary times its
            multiplier.
        count: computes the counts; deferred because it takes time and most callers do not need them.
        bend: v -> K v, where K is not diagonal; None otherwise. Called with tangent vectors.
        force: `(term, at)` -> the gradient of the smooth function that the term is along its face, taken at `at` for
            the parameters of `term`, with the face and the multipliers of this tangent. It carries how theta moves
            the optimality condition through the term. None where it is constant up to normals that move with the face:
            for flat faces and the ball.
        motion: the motion of z with the face of this tangent; None to use `Term.motion`.
        strain: information on active constraints that are linearly dependent; None if they never are.
        duals: `(layout of z)` -> the multipliers by the names of their constraints, which are the names of the fields
            that hold their right-hand sides, if there are such fields; None if the term does not define any.
        selects: whether P only sets coordinates to zero, so that P v has no rounding.
        whole: whether there is no constraint at all, so that nothing is active or degenerate.
    """

    projector: Callable[[Tensor], Tensor]
    curvature: Tensor | float
    count: Callable[[], Counts]
    bend: Callable[[Tensor], Tensor] | None = None
    force: Callable[[Any, Tensor], Tensor] | None = None
    motion: Carry | None = None
    strain: Strain | None = None
    duals: Callable[[Layout], Tree] | None = None
    selects: bool = False
    whole: bool = False

    def project(self, v: Tensor) -> Tensor:
        """Return P v, shape `(*lanes, n)`."""
        return self.projector(v)

    def curve(self, v: Tensor) -> Tensor:
        """Return K v for a tangent v, shape `(*lanes, n)`."""
        diagonal = self.curvature * v
        return diagonal if self.bend is None else diagonal + self.bend(v)

    def carry(self, origin: Any, term: Any, z: Tensor) -> Tensor:
        """Return how far z moves with the face when `origin`, whose tangent this is, becomes `term`."""
        known = self.motion
        if known is None or type(origin).motion is not known.instead:
            moved: Tensor = term.motion(origin, z)
            return moved
        return known.of(term, z)

    def counts(self) -> Counts:
        """Count free, active and degenerate directions of each lane."""
        return self.count()


class Term(ABC):
    """A non-smooth term of the lower problem. Parameters may be numbers, or tensors that require grad.

    Each subclass is registered as a tree whose leaves are its tensors.
    """

    def __init_subclass__(cls) -> None:
        """Let terms that move with theta be mapped over, by their tensors."""
        super().__init_subclass__()
        tree.register(cls, _is_parameter)

    @property
    def extent(self) -> Tensor | float | None:
        """An upper bound of the distance of two points of the set, a number or shape `(*lanes, 1)`; None if not known.

        In a set that is small compared with the gradient, any two points are near each other. So optimality is tested
        with steps no longer than this, and errors of z are compared with it.
        """
        return None

    def detach(self) -> Self:
        """Return the same term with constant parameters."""
        constant: Self = tree.detach(self) if vars(self) else self
        return constant

    @abstractmethod
    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """Return the minimiser x of `1/2 |x - z|^2 + step * term(x)`: for a set, the nearest point.

        Args:
            z: shape `(*lanes, n)`; the result is differentiable in it and in the term's parameters.
            step: a number, or a tensor of shape `(*lanes, 1)`; positive.
        """

    @property
    def rounds(self) -> bool:
        """Whether `retreat` loses moves that are short compared with z to the rounding of z."""
        return True

    def retreat(self, z: Tensor, move: Tensor, step: Tensor | float) -> Tensor:
        """Return `z - prox(z - move, step)`, shape `(*lanes, n)`."""
        return z - self.prox(z - move, step)

    def bounds(self, z: Tensor) -> tuple[Tensor | float, Tensor | float] | None:
        """Return the lower and the upper bound of each coordinate, if the term is a set that consists of such bounds.

        `LBFGS`, `Newton`, `LevenbergMarquardt` and steps of one size per coordinate need them.

        Args:
            z: shape `(*lanes, n)`; only its shape, dtype and device matter.

        Returns:
            Numbers or tensors that broadcast to z, infinite where a side is open; None for every other set and for
            penalties.
        """
        return None

    def from_logarithms(self, logarithms: Tensor) -> Tensor | None:
        """Return the point of the set nearest to `exp(logarithms)` in the Kullback-Leibler divergence.

        `MirrorDescent` needs it. Every coordinate must be positive, so that its logarithm is finite.

        Args:
            logarithms: shape `(*lanes, n)`.

        Returns:
            A point of the same shape; None for sets without such a map and for penalties.
        """
        return None

    def blocked(self, z: Tensor, gradient: Tensor) -> Tensor | None:
        """Return which coordinates a step against the gradient cannot move, since they are at a bound.

        Booleans of z's shape; None where there are no bounds on coordinates.
        """
        return None

    @abstractmethod
    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        """Return the tangent space at a solution.

        Args:
            z: a minimiser, shape `(*lanes, n)`.
            gradient: gradient of the lower objective there, same shape. The multipliers follow from it.
        """

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        """Return how far `z` moves with the face when the parameters change from `origin`'s to those of this term.

        The value is zero where the parameters are equal; the derivative in these parameters is N of the hypergradient
        formula. Which constraints are active, and their normals, are those of `origin` at `z`. Terms whose face
        stays in place do not move.

        Args:
            origin: the same term, its parameters taken as constants by a first differentiation.
            z: a minimiser with `origin`, shape `(*lanes, n)`.
        """
        return torch.zeros_like(z)

    def loosened(self, slack: float) -> Self:
        """Return the same term with a `slack` of at least this; the term itself if it has that already, or none."""
        held = getattr(self, "slack", None)
        if held is None or held >= slack or not is_dataclass(self):
            return self
        changes: dict[str, Any] = {"slack": slack}
        return replace(self, **changes)

    def fit(self, layout: Layout) -> Term:
        """Return the same term with its parameters flattened like `layout` flattens z.

        Raises:
            StructureError: if a parameter does not fit z.
        """
        return self


def small_extent(term: Term, like: Tensor) -> Tensor | None:
    """Return the extent of a small set, infinite in lanes where it is not small; None if it is not small in any.

    The result has the dtype and the device of `like`, and the shape `()` or `(*lanes, 1)`.
    """
    extent = term.extent
    # An extent of zero, that of a single point, would be a length by which residuals and errors are divided.
    if extent is None or not (isinstance(extent, Tensor) or 0 < extent < _SMALL):
        return None
    found = torch.as_tensor(extent, dtype=like.dtype, device=like.device)
    return torch.where((found > 0) & (found < _SMALL), found, torch.inf)


def length_for_errors(term: Term, size: Tensor) -> Tensor:
    """Return these lengths, of shape `(*lanes, 1)`, or a share of the extent of a small set where that is less.

    If the set is not small, the result is `size` itself.

    The share leaves a margin for the estimates of curvature by which errors relative to these lengths are bounded.
    """
    extent = small_extent(term, size)
    return size if extent is None else torch.minimum(size, _MARGIN * extent.detach())


def expanded(value: Tensor | float, z: Tensor) -> Tensor:
    """Return a number, or a tensor that broadcasts to z, as a tensor of the shape of z."""
    return value.expand_as(z) if isinstance(value, Tensor) else torch.full_like(z, value)


def can_validate() -> bool:
    """Return whether the values of tensors may be read, with `failing`.

    Under `torch.func` transforms they are read once: not in a backward pass, which makes the terms of the solve again.
    They are not read while a compiler traces.
    """
    return not transforms_active() or not (torch.compiler.is_compiling() or repeated)


def failing(condition: Tensor | bool) -> Tensor:
    """Return where a condition does not hold, in every lane of an enclosing `vmap`: booleans of any shape."""
    # Negated, because every comparison with a NaN is false.
    return plain(as_tensor(condition).logical_not())


def per_lane(value: Tensor | float) -> Tensor | float:
    """Make one value per lane, shape `lanes`, broadcast against `(*lanes, n)`."""
    return torch.unsqueeze(value, -1) if isinstance(value, Tensor) and value.ndim > 0 else value


def fit_per_lane(value: Tensor | float, layout: Layout, name: str) -> Tensor | float:
    """Return a number unchanged, and a tensor with the axes of `layout.lanes`, of length one if it had none.

    Raises:
        StructureError: with `name`, if it is neither a number nor one value per lane.
    """
    if not isinstance(value, Tensor):
        return value
    if tuple(value.shape) not in {(), layout.lanes}:
        allowed = "()" if not layout.lanes else f"() or {layout.lanes}"
        raise StructureError(
            f"`{name}` must be a number or a tensor of shape {allowed}, but has shape {tuple(value.shape)}. "
            "For one value per block of z, put the blocks in a `Product`."
        )
    return _like_z(value, layout, name, len(layout.lanes))


def fit_coordinates(value: Tree, layout: Layout, name: str) -> Tensor | float:
    """Return a number unchanged, and a tensor or tree flattened like z, with the axes of `(*lanes, n)`.

    Raises:
        StructureError: with `name`, if it does not fit.
    """
    flat = layout.ravel_parameter(value, name)
    return _like_z(flat, layout, name, len(layout.lanes) + 1) if isinstance(flat, Tensor) else flat


def _like_z(value: Tensor, layout: Layout, name: str, axes: int) -> Tensor:
    """Return a parameter with this number of axes, in z's precision, so that a projection keeps that of z."""
    if value.device != layout.device:
        raise StructureError(f"`{name}` must be on {layout.device} like `z0`, but is on {value.device}. Use `.to`.")
    # Keep all axes, so that an axis which `vmap` adds in front lines up with that of z.
    return settled(value.to(layout.dtype)).reshape((1,) * (axes - value.ndim) + value.shape)


def _is_parameter(value: object) -> bool:
    parts = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(part, Tensor | Term) for part in parts)
