"""Constraint sets: projection, tangent space, curvature and motion with theta. Sets never need solvers."""

from blo.sets._affine import Affine
from blo.sets._base import Counts, Set, Tangent
from blo.sets._box import Box
from blo.sets._free import Free
from blo.sets._halfspaces import Halfspaces
from blo.sets._intersection import Intersection
from blo.sets._l1_ball import L1Ball
from blo.sets._l2ball import L2Ball
from blo.sets._nonnegative import NonNegative
from blo.sets._product import Product
from blo.sets._simplex import Simplex
from blo.sets._smooth import SmoothConstraints

__all__ = [
    "Affine",
    "Box",
    "Counts",
    "Free",
    "Halfspaces",
    "Intersection",
    "L1Ball",
    "L2Ball",
    "NonNegative",
    "Product",
    "Set",
    "Simplex",
    "SmoothConstraints",
    "Tangent",
]
