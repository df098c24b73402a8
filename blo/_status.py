"""How a computation ended. The value of a status is the sentence that a report prints."""

from __future__ import annotations

import enum


class Status(enum.Enum):
    """The outcome of a lower solve or of a linear solve."""

    CONVERGED = "converged"
    UNCONVERGED = "stopped before its tolerance"
    RANDOM = "two evaluations of the objective at one point differ: it is not a function of theta and z"
    UNCHECKED = "an approximation by choice, or a fixed number of steps: no tolerance was asked for"
    GIVEN = "the point was given, not solved for"
    INDEFINITE = "curvature is not positive on the tangent space: the point is not an isolated minimiser"
    NON_FINITE = "a NaN or an infinity appeared"
    UNUSED = "not needed: the strategy solves no linear system"

    def __str__(self) -> str:
        return self.value
