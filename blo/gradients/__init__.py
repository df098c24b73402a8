"""Gradient strategies."""

from blo.gradients._base import Optimality, Pulled, Rule, Solve, Steps, Strategy, Watch
from blo.gradients._closed_form import HessianFree, KKTClosedForm
from blo.gradients._implicit import Implicit
from blo.gradients._sama import SAMA
from blo.gradients._stationary import Stationary
from blo.gradients._unrolled import Unrolled
from blo.gradients._value_function import ValueFunction
from blo.gradients._zero import Zero

__all__ = [
    "SAMA",
    "HessianFree",
    "Implicit",
    "KKTClosedForm",
    "Optimality",
    "Pulled",
    "Rule",
    "Solve",
    "Stationary",
    "Steps",
    "Strategy",
    "Unrolled",
    "ValueFunction",
    "Watch",
    "Zero",
]
