"""Image classifiers by name. Every model takes images in [0, 1] and normalises them itself."""

from __future__ import annotations

from adv_train.models.registry import create, names

__all__ = ["create", "names"]
