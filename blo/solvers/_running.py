"""The state of the loop that all iterative solvers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from blo._curvature import Place


class Aims(Protocol):
    """The part of `Iterative` that the stopping criterion uses."""

    @property
    def tol(self) -> float | None: ...
    @property
    def relative(self) -> bool: ...
    def aimed(self, state: Any, limit: Tensor, unit: Tensor) -> Any:
        """Return the state with the residual at which to stop, shape `lanes`, and its unit, shape `(*lanes, 1)`."""


class State(Protocol):
    """The state of a solver: a named tuple of tensors, or tuples of tensors, with leading lane axes.

    Tensors without lane axes are shared by all lanes, so they keep changing after some lanes have stopped.

    Attributes:
        z: the iterate, shape `(*lanes, n)`.
        slope: the gradient of the objective at z.
        trial: the point to be evaluated next; the result of a solve without a tolerance.
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def slope(self) -> Tensor: ...
    @property
    def trial(self) -> Tensor: ...
    def anew(self, gradient: Callable[[Tensor], Tensor]) -> Any:
        """Return the state with the gradients that the next step uses computed again, and all else unchanged."""


class Running(NamedTuple):
    """The state of the loop. Without a tolerance every field except `state` has the shape `()` and is on the CPU.

    Attributes:
        state: the state of the solver.
        limit: the residual at which each lane stops, shape `lanes`.
        unit: the unit of the residual, shape `(*lanes, 1)`.
        lost: the lanes whose last step started from a residual of NaN, shape `lanes`.
        place: the point of the last residual, shape `(*lanes, n)`; NaN if the residual must be computed again.
        residual: the residual at that point, shape `lanes`; infinite if no residual is measured.
        origin: the start of the solve, shape `(*lanes, n)`, and the gradient there, `first`.
        mark: the smallest residual at the tests of progress so far, shape `lanes`.
        floor: the lanes that stopped because the residual no longer decreases near rounding error, shape `lanes`.
        least: for fixed-point problems, the smallest residual so far, shape `lanes`.
        since: for fixed-point problems, the number of steps since `least` fell, shape `lanes`.
        stuck: for fixed-point problems, the lanes that stopped because `least` does not fall, shape `lanes`.
        random: the lanes in which two evaluations at one point differ, shape `lanes`.
    """

    state: Any
    limit: Tensor
    unit: Tensor
    lost: Tensor
    place: Tensor
    residual: Tensor
    origin: Tensor
    first: Tensor
    mark: Tensor
    floor: Tensor
    random: Tensor
    least: Tensor
    since: Tensor
    stuck: Tensor

    @property
    def resting(self) -> Tensor:
        """The lanes that make no further step, booleans of shape `lanes`."""
        # A residual of NaN fulfils no comparison. Such lanes stop through `lost`, one step later.
        return (self.residual <= self.limit) | self.lost | self.floor | self.stuck

    @property
    def z(self) -> Tensor:
        """The iterate, shape `(*lanes, n)`."""
        z: Tensor = self.state.z
        return z

    @property
    def at(self) -> Place:
        """The iterate and the start of the solve, as constants: the stopping criterion is not differentiated."""
        return Place(self.state.z.detach(), self.state.slope.detach(), self.origin, self.first)
