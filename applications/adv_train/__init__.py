"""Adversarial training as bilevel optimisation."""

from adv_train.api import training_gradient
from adv_train.loading import load_model
from adv_train.methods import Step

__all__ = ["Step", "load_model", "training_gradient"]
