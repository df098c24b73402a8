"""Adversarial training as bilevel optimisation."""

from adv_train.api import training_gradient
from adv_train.methods import Step

__all__ = ["Step", "training_gradient"]
