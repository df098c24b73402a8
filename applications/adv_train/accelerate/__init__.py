"""Faster training steps: each step as one CUDA graph, or a compiled forward pass."""

from adv_train.accelerate.check import check
from adv_train.accelerate.compiled import compiled, seconds_of_compiling
from adv_train.accelerate.graph import Replayed, captured
from adv_train.accelerate.obstacles import obstacles
from adv_train.accelerate.rates import held

__all__ = ["Replayed", "captured", "check", "compiled", "held", "obstacles", "seconds_of_compiling"]
