"""Gradient strategies."""

from blo.gradients._base import Optimality, Pulled, Solve, Strategy, Trace
from blo.gradients._closed_form import HessianFree, KKTClosedForm
from blo.gradients._implicit import Implicit
from blo.gradients._stationary import Stationary
from blo.gradients._unrolled import Unrolled
from blo.gradients._zero import Zero

__all__ = [
    "HessianFree",
    "Implicit",
    "KKTClosedForm",
    "Optimality",
    "Pulled",
    "Solve",
    "Stationary",
    "Strategy",
    "Trace",
    "Unrolled",
    "Zero",
]
