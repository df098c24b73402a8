"""Linear solvers: `(A + damping I) x = b`, one system for each lane."""

from blo.linsolve._auto import Auto
from blo.linsolve._base import LinearSolution, LinearSolver
from blo.linsolve._cg import CG
from blo.linsolve._direct import Direct
from blo.linsolve._gmres import GMRES
from blo.linsolve._identity import Identity
from blo.linsolve._minres import MINRES
from blo.linsolve._neumann import Neumann
from blo.linsolve._nystrom import Nystrom
from blo.linsolve._precondition import Preconditioner

__all__ = [
    "CG",
    "GMRES",
    "MINRES",
    "Auto",
    "Direct",
    "Identity",
    "LinearSolution",
    "LinearSolver",
    "Neumann",
    "Nystrom",
    "Preconditioner",
]
