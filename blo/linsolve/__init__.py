"""Linear solvers: `(A + damping I) x = b`, one system a lane."""

from blo.linsolve._base import LinearSolution, LinearSolver
from blo.linsolve._cg import CG
from blo.linsolve._direct import Direct
from blo.linsolve._identity import Identity

__all__ = ["CG", "Direct", "Identity", "LinearSolution", "LinearSolver"]
