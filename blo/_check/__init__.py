"""Comparison of a hypergradient with finite differences, ingredient by ingredient."""

from blo._check._check import check_hypergrad
from blo._check._outcome import Check, Direction, Finding, Part

__all__ = ["Check", "Direction", "Finding", "Part", "check_hypergrad"]
