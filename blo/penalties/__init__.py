"""Penalties: non-smooth terms of the lower objective, with their proximal operators."""

from blo.penalties._base import Penalty

__all__ = ["Penalty"]
