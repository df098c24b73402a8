"""Image classifiers by name. Every model takes images in [0, 1] and normalises them itself."""

from __future__ import annotations

from adv_train.models.layout import require_layout
from adv_train.models.registry import MODELS, create
from adv_train.models.torchvision_models import PREFIX as TORCHVISION
from adv_train.models.trusted import is_foreign, require_trusted, trust
from adv_train.models.weights import load_weights

__all__ = [
    "MODELS",
    "TORCHVISION",
    "create",
    "is_foreign",
    "load_weights",
    "require_layout",
    "require_trusted",
    "trust",
]
