"""What an adapter offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from benchmarks.smooth import Smooth


class Prepared(NamedTuple):
    """A hypergradient ready to be computed: `run` is what is timed, `read` makes a tensor of its result."""

    run: Callable[[], Any]
    read: Callable[[Any], Tensor]


class Adapter(Protocol):
    """A module of this package: one library in its own idiom."""

    #: As the tables call it.
    NAME: str
    #: Its distribution, for the version; None if it is not to be had from PyPI.
    DISTRIBUTION: str | None
    #: How it computes hypergradients here.
    METHOD: str
    #: Whether its products are with the Hessian, so that their number can be compared.
    ITERATES: bool

    def prepare(self, problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
        """Return the hypergradient at `(problem.theta, problem.z)` with so many Hessian-vector products.

        Raises:
            Unsupported: if the library has no such thing.
        """


class Unsupported(Exception):
    """What the library does not offer, in a few words for a table."""
