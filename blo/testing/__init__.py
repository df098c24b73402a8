"""Conformance suites for people who write their own sets, penalties, linear solvers, lower solvers and strategies.

Each suite tests the properties that the library relies on. It raises `AssertionError` with the first one that fails and
the numbers, and otherwise returns the list of the properties that hold. Neither pytest nor hypothesis is needed.
"""

from blo.testing._linear_solvers import check_linear_solver
from blo.testing._solvers import check_solver
from blo.testing._strategies import check_strategy
from blo.testing._suite import Conformance
from blo.testing._terms import check_penalty, check_set

__all__ = [
    "Conformance",
    "check_linear_solver",
    "check_penalty",
    "check_set",
    "check_solver",
    "check_strategy",
]
