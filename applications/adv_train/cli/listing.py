"""List the methods, presets, models, data sets and attacks.

examples:
  adv-train list
  adv-train list presets
"""

from __future__ import annotations

import argparse

from adv_train import data
from adv_train.attacks import ATTACKS
from adv_train.methods import METHODS
from adv_train.models import MODELS
from adv_train.objectives import OBJECTIVES
from adv_train.recipes import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("section", nargs="?", choices=tuple(_sections()), help="list only these")


def run(arguments: argparse.Namespace) -> int:
    """Print each name with a line about it."""
    for title, lines in _sections().items():
        if arguments.section in (None, title):
            print(f"{title}:")
            width = max(map(len, lines))
            for name, about in lines.items():
                print(f"  {name.ljust(width)}  {about}".rstrip())
    return 0


def _sections() -> dict[str, dict[str, str]]:
    return {
        "methods": {name: f"{METHODS.describe(name)} Options: {_options(name)}" for name in METHODS.names()},
        "objectives": {name: OBJECTIVES.describe(name) for name in OBJECTIVES.names()},
        "presets": {name: preset.about for name, preset in PRESETS.items()},
        "models": {name: MODELS.describe(name) for name in MODELS.names()},
        "data": {name: data.DATASETS.describe(name.partition(":")[0]) for name in data.names()},
        "attacks": {name: ATTACKS.describe(name) for name in ATTACKS.names()},
    }


def _options(method: str) -> str:
    return ", ".join(METHODS.options(method)) or "none"
