"""The interface of an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from benchmarks.smooth import Smooth


class Prepared(NamedTuple):
    """A prepared hypergradient: `run` is timed, and `read` turns its result into a tensor."""

    run: Callable[[], Any]
    read: Callable[[Any], Tensor]


class Adapter(Protocol):
    """A module of this package: the adapter of one library."""

    #: Its name in the tables.
    NAME: str
    #: Its distribution, for the version; None if it is not on PyPI.
    DISTRIBUTION: str | None
    #: How it computes hypergradients here.
    METHOD: str
    #: Whether it makes Hessian-vector products, so that their number can be compared.
    ITERATES: bool

    def prepare(self, problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
        """Return the hypergradient at `(problem.theta, problem.z)` with this many Hessian-vector products.

        Raises:
            Unsupported: if the library cannot do this.
        """


class Unsupported(Exception):
    """Raised for what a library cannot do; the message is a few words for a table."""
