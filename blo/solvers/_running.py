"""What the one loop of all iterative solvers carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from blo._curvature import Place


class Aims(Protocol):
    """What is to be known of an iterative solver in order to stop it: see `Iterative`."""

    @property
    def tol(self) -> float | None: ...
    @property
    def relative(self) -> bool: ...
    def aimed(self, state: Any, limit: Tensor, unit: Tensor) -> Any:
        """Return the state told the residual to reach, shape `lanes`, and its unit, `(*lanes, 1)`."""


class State(Protocol):
    """What a solver carries from step to step: a named tuple of tensors, or tuples of them, with the lanes in front.

    Tensors that have no lanes in front are shared by all lanes, and do not rest when one of them does.

    Attributes:
        z: the current point, shape `(*lanes, n)`.
        slope: the gradient of the objective there.
        trial: where to look next; the solver's answer when it stops without measuring.
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def slope(self) -> Tensor: ...
    @property
    def trial(self) -> Tensor: ...
    def anew(self, gradient: Callable[[Tensor], Tensor]) -> Any:
        """Return the state with the slopes that the next step is made from computed anew, all else kept."""


class Running(NamedTuple):
    """What the loop carries. Where nothing is measured all but the state is of shape `()` and on the CPU.

    Attributes:
        state: the solver's.
        limit: the residual at which each lane stops, shape `lanes`.
        unit: what the residual is measured in, shape `(*lanes, 1)`.
        lost: lanes whose last step was from a residual of NaN, shape `lanes`.
        place: where the residual was measured last, shape `(*lanes, n)`; NaN where it is to be measured anew.
        residual: what it was there, shape `lanes`; infinite where nothing is measured.
        origin: where the solve began, shape `(*lanes, n)`, and the gradient there, `first`.
        mark: the least residual at an earlier look, shape `lanes`.
        floor: lanes that have stopped since nothing improves at the rounding of gradients, shape `lanes`.
        least: the least residual so far, shape `lanes`; where there is an objective, it is not kept.
        since: steps since it fell by more than a little, likewise.
        stuck: lanes that have stopped since it does not fall, likewise.
        random: lanes in which two evaluations at one point have differed, shape `lanes`.
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
        """Which lanes make no further step, shape `lanes`."""
        return (self.residual <= self.limit) | self.lost | self.floor | self.stuck

    @property
    def z(self) -> Tensor:
        """The current point, shape `(*lanes, n)`."""
        z: Tensor = self.state.z
        return z

    @property
    def at(self) -> Place:
        """Where the solve is, held constant."""
        return Place(self.state.z.detach(), self.state.slope.detach(), self.origin, self.first)
