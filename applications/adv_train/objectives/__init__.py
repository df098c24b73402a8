"""Objectives of the attack and of training: per-sample losses of the logits of perturbed and clean images."""

from __future__ import annotations

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced

__all__ = ["OBJECTIVES", "Objective", "Reduction", "reduced"]
