"""List the methods, presets, models, data sets and attacks.

examples:
  adv-train list
  adv-train list presets
"""

from __future__ import annotations

import argparse

from adv_train import attacks, data, methods, models
from adv_train.recipes import PRESETS

_MODELS = {
    "preact-resnet-18": "pre-activation ResNet-18 of the published tables, for images of 32 x 32 and more",
    "small-cnn": "three convolutions, for small images such as the digits",
}
_DATA = {
    "cifar10": "60,000 colour images of 32 x 32 in 10 classes, downloaded by torchvision",
    "cifar100": "the same in 100 classes",
    "digits": "1,797 handwritten digits of 8 x 8 that come with scikit-learn",
    "imagefolder:PATH": "your own images, one folder a class, with or without train/ and test/ above",
}


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
        "methods": {name: f"{methods.describe(name)} Options: {_options(name)}" for name in methods.names()},
        "presets": {name: preset.about for name, preset in PRESETS.items()},
        "models": {name: _MODELS.get(name, "") for name in models.names()},
        "data": {name: _DATA.get(name, "") for name in data.names()},
        "attacks": {name: attacks.describe(name) for name in attacks.names()},
    }


def _options(method: str) -> str:
    return ", ".join(methods.options(method)) or "none"
