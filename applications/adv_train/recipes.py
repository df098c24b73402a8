"""What a run uses where the user says nothing: a recipe for each data set and method, and names for published cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adv_train.config import RunConfig, check_values, read_yaml
from adv_train.devices import find_device
from adv_train.errors import UserError, unknown

# Zhang et al. (ICML 2022), after Wong, Rice and Kolter (2020), whose CyclicLR also cycles the momentum.
_PUBLISHED: Final[dict[str, Any]] = {
    "model": "preact-resnet-18",
    "eps": 8 / 255,
    "epochs": 20,
    "batch_size": 128,
    "lr": 0.2,
    "schedule": "triangular",
    "momentum": 0.9,
    "momentum_cycling": True,
    "weight_decay": 5e-4,
}
# 1,257 images of 8x8 pixels: seconds on one core, at a budget that breaks standard training.
_DIGITS: Final[dict[str, Any]] = {
    "model": "small-cnn",
    "eps": 0.2,
    "epochs": 30,
    "batch_size": 64,
    "lr": 0.1,
    "schedule": "triangular",
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
RECIPES: Final[dict[str, Mapping[str, Any]]] = {
    "digits": _DIGITS,
    "cifar10": _PUBLISHED,
    "cifar100": _PUBLISHED,
    "imagefolder": _PUBLISHED,
}


@dataclass(frozen=True)
class Preset:
    """A name for one data set, method and budget; the recipe supplies the rest.

    Attributes:
        about: One line for ``adv-train list``.
        values: What the name stands for.
    """

    about: str
    values: Mapping[str, Any]


def _presets() -> dict[str, Preset]:
    presets = {}
    for data, title in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")):
        for levels in (8, 16):
            for method in ("fast-at", "fast-at-ga", "pgd-at", "fast-bat"):
                values = {"data": data, "method": method, "eps": levels / 255}
                about = f"{method} on {title} at {levels}/255, with the published hyperparameters"
                presets[f"{data}-{levels}-{method}"] = Preset(about, values)
    for method in ("standard", "fast-at", "fast-at-ga", "pgd-at", "fast-bat"):
        about = f"{method} on scikit-learn's handwritten digits at 0.2, seconds on one core"
        presets[f"digits-{method}"] = Preset(about, {"data": "digits", "method": method, "eps": 0.2})
    return presets


PRESETS: Final[dict[str, Preset]] = _presets()


def resolve(flags: Mapping[str, Any], *, preset: str | None = None, file: Path | None = None) -> RunConfig:
    """Complete what the user said: flags win over the YAML file, the file over the preset, the preset over the recipe.

    Args:
        flags: Values given on the command line, as text or numbers.
        preset: One of `PRESETS`.
        file: A YAML file with some or all keys of `RunConfig`.

    Raises:
        UserError: When a name or value is wrong, or neither data nor method is given.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    chosen: dict[str, Any] = dict(PRESETS[preset].values) if preset else {}
    for layer in (read_yaml(file) if file else {}, check_values(flags)):
        chosen |= {**layer, "options": {**chosen.get("options", {}), **layer.get("options", {})}}
    for key in ("data", "method"):
        if key not in chosen:
            raise UserError(
                f"Nothing says which {key} to train with: give --{key} NAME or --preset NAME "
                "(`adv-train list` shows the names)."
            )
    config = RunConfig(**defaults(chosen["data"], chosen["method"], chosen.get("eps"))).with_values(chosen)
    # A record names the device that was used, not the rule that chose it.
    return config.with_values({"device": str(find_device(config.device))})


def defaults(data: str, method: str, eps: float | None = None) -> dict[str, Any]:
    """Give the recipe of a data set for a method, as arguments of `RunConfig`.

    Args:
        data: Name of the data set.
        method: Name of the method; one that the recipes do not mention gets no options.
        eps: Radius of the attack, where it is not the recipe's own.

    Raises:
        UserError: When there is no recipe for the data set.
    """
    family = data.partition(":")[0]
    if family not in RECIPES:
        raise unknown("data set", family, RECIPES)
    return {
        **RECIPES[family],
        "data": data,
        "method": method,
        "device": "auto",
        # Standard training has no robust accuracy to choose by: its first, nearly random epoch would often win.
        "select": "clean" if method == "standard" else "robust",
        "options": _digits_options(method, eps) if family == "digits" else {},
    }


def _digits_options(method: str, eps: float | None) -> dict[str, Any]:
    # The methods' own defaults are those of the published cells; at the digits' wide budget these validate better.
    if method == "fast-bat":
        return {"step": 5000 / 255}
    if method == "pgd-at":
        return {"step": _DIGITS["eps"] if eps is None else eps}
    return {"coefficient": 0.2} if method == "fast-at-ga" else {}
