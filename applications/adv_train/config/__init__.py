"""The configuration of a run: one set of dataclasses for flags, YAML files, presets and Python."""

from __future__ import annotations

from adv_train.config.files import read_yaml, to_yaml
from adv_train.config.layers import PRESETS, RECIPES, resolve
from adv_train.config.optimizer import OptimizerConfig
from adv_train.config.run import RunConfig
from adv_train.config.sections import ComputeConfig, DataConfig, ModelConfig, TrainingConfig
from adv_train.config.tree import SECTIONS, fields, flat, short

__all__ = [
    "PRESETS",
    "RECIPES",
    "SECTIONS",
    "ComputeConfig",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainingConfig",
    "fields",
    "flat",
    "read_yaml",
    "resolve",
    "short",
    "to_yaml",
]
