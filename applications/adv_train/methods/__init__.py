"""Training methods, each a few lines of composition over `blo`."""

from __future__ import annotations

from adv_train.methods.base import METHODS, Adversarial, Method, Step
from adv_train.methods.moment import Moment, Sizes, State

__all__ = ["METHODS", "Adversarial", "Method", "Moment", "Sizes", "State", "Step"]
