"""Adversarial training as bilevel optimisation."""

from adv_train.api import training_gradient
from adv_train.evaluate import evaluate
from adv_train.loading import load_model
from adv_train.methods import Step
from adv_train.threat import Threat

__all__ = ["Step", "Threat", "evaluate", "load_model", "training_gradient"]
