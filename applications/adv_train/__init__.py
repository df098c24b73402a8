"""Adversarial training as bilevel optimisation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adv_train.api import fit, training_gradient
    from adv_train.doctor import doctor
    from adv_train.errors import Diverged, UserError
    from adv_train.evaluate import evaluate
    from adv_train.export import export
    from adv_train.loading import load_model
    from adv_train.methods import Step
    from adv_train.models import trust
    from adv_train.threat import Threat

__all__ = [
    "Diverged",
    "Step",
    "Threat",
    "UserError",
    "doctor",
    "evaluate",
    "export",
    "fit",
    "load_model",
    "training_gradient",
    "trust",
]

_HOMES = {
    "Diverged": "errors",
    "Step": "methods",
    "Threat": "threat",
    "UserError": "errors",
    "doctor": "doctor",
    "evaluate": "evaluate",
    "export": "export",
    "fit": "api",
    "load_model": "loading",
    "training_gradient": "api",
    "trust": "models",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import adv_train` does not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'adv_train' has no attribute {name!r}")
    return getattr(import_module(f"adv_train.{_HOMES[name]}"), name)
