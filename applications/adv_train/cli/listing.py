"""List the methods, norms, presets, models, data sets, optimizers, attacks, checks and forms of export.

examples:
  adv-train list
  adv-train list presets
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adv_train import data, optimizers
from adv_train.attacks import ATTACKS
from adv_train.cli.command_line import options
from adv_train.config import PRESETS
from adv_train.doctor import CHECKS
from adv_train.errors import unknown
from adv_train.export import FORMS
from adv_train.methods import METHODS
from adv_train.models import MODELS, TORCHVISION
from adv_train.objectives import OBJECTIVES
from adv_train.observers import OBSERVERS
from adv_train.threat import NORMS

_OTHER_MODELS = {
    f"{TORCHVISION}NETWORK": "A classification network of torchvision, by torchvision's name for it.",
    "MODULE:FACTORY": "Your own network: the function or class that creates it.",
}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What to list.

    Attributes:
        section: methods, norms, objectives, presets, models, data, optimizers, observers, attacks, checks or forms; by
            default all.
    """

    section: str | None = None


def read(words: Sequence[str]) -> Listing:
    """Read the command line."""
    return options(Listing, words, "adv-train list", __doc__ or "", positional="section")


def run(words: Sequence[str]) -> int:
    """Print each name with its description."""
    wanted = read(words).section
    sections = _sections()
    if wanted is not None and wanted not in sections:
        raise unknown("section", wanted, sections)
    for title, lines in sections.items():
        if wanted in (None, title):
            print(f"{title}:")
            width = max(map(len, lines))
            for name, about in lines.items():
                print(f"  {name.ljust(width)}  {about}".rstrip())
    return 0


def _sections() -> dict[str, dict[str, str]]:
    return {
        "methods": {name: f"{METHODS.describe(name)} Options: {_options(name)}" for name in METHODS.names()},
        "norms": dict(NORMS),
        "objectives": {name: OBJECTIVES.describe(name) for name in OBJECTIVES.names()},
        "presets": {name: preset["about"] for name, preset in PRESETS.items()},
        "models": {name: MODELS.describe(name) for name in MODELS.names()} | _OTHER_MODELS,
        "data": {name: data.DATASETS.describe(name.partition(":")[0]) for name in data.names()},
        "optimizers": {name: f"Options: {', '.join(optimizers.options(name))}" for name in optimizers.names()},
        "observers": {name: OBSERVERS.describe(name) for name in OBSERVERS.names()},
        "attacks": {name: ATTACKS.describe(name) for name in ATTACKS.names()},
        "checks": {name: CHECKS.describe(name) for name in CHECKS.names()},
        "forms": {name: FORMS.describe(name) for name in FORMS.names()},
    }


def _options(method: str) -> str:
    return ", ".join(METHODS.options(method)) or "none"
