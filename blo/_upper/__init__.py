"""The loop over the upper variable."""

from blo._upper._fit import FitResult, fit
from blo._upper._step import FitStep

__all__ = ["FitResult", "FitStep", "fit"]
