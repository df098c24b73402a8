"""Observers of training: one module for each."""

from __future__ import annotations

from adv_train.observers.base import OBSERVERS, Observer
from adv_train.observers.progress import Progress

__all__ = ["OBSERVERS", "Observer", "Progress"]
