"""Recipes and presets: the default values of a configuration, which files and flags override."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from adv_train.config.files import read_yaml
from adv_train.config.run import RunConfig
from adv_train.config.tree import check_names, flat
from adv_train.data import DATASETS
from adv_train.devices import find_device
from adv_train.errors import UserError, unknown
from adv_train.threat import NORMS


class Folder(Mapping[str, dict[str, Any]]):
    """Maps the names of the YAML files in a folder of this package to their contents; a file is read on access.

    Args:
        name: Name of the folder.
    """

    def __init__(self, name: str) -> None:
        self._path = Path(str(files("adv_train") / name))

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self:
            raise KeyError(name)
        return read_yaml(self._path / f"{name}.yaml")

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self._path.glob("*.yaml")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


#: Configurations of one data set, method and budget, by name; `about` describes each, and the recipe supplies the rest.
PRESETS = Folder("presets")
#: Default configurations, by data set; `methods` holds values for single methods, `budgets` holds eps in other norms.
RECIPES = Folder("recipes")


def resolve(flags: Mapping[str, Any], *, preset: str | None = None, file: Path | None = None) -> RunConfig:
    """Return the full configuration of a run.

    Flags override the YAML file, the file overrides the preset, and the preset overrides the recipe of the data set.

    Args:
        flags: Values given on the command line or in Python, as text or typed, by short name or section.
        preset: One of `PRESETS`.
        file: A YAML file with some or all keys of a configuration.

    Raises:
        UserError: If a name or a value is invalid, or the data set or the method is missing.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    named = {key: value for key, value in PRESETS[preset].items() if key != "about"} if preset else {}
    written = read_yaml(file) if file else {}
    try:
        written = flat(written)
        check_names(written)
    except UserError as error:
        raise UserError(f"In the configuration `{file}`: {error}") from None
    chosen = flat(named, written, flags)
    for key in ("data", "method"):
        if chosen.get(key) is None:
            raise UserError(
                f"The configuration has no {key}{f', and neither has `{file}`' if file else ''}: give --{key} NAME "
                "or --preset NAME (`adv-train list` shows the names)."
            )
    recipe = defaults(str(chosen["data"]), str(chosen["method"]), chosen.get("norm", "linf"), chosen.get("eps"))
    if file:
        essential = {key: chosen[key] for key in ("data", "method")}
        try:
            RunConfig.of(flat(recipe, named, written, essential))
        except UserError as error:
            raise UserError(f"In the configuration `{file}`: {error}") from None
    # The eps and the step of a layer refer to the norm that is set in the same layer or in one below it.
    merged = flat(recipe, named, written, flags)
    merged.pop("step", None)
    steps = [layer["step"] for layer in (recipe, chosen) if "step" in layer]
    lengths = {"norm": recipe["norm"], "eps": recipe["eps"], **({"step": steps[-1]} if steps else {})}
    config = RunConfig.of({**merged, **lengths})
    # The record must name the device that was used, not `auto`.
    return config.changed({"device": str(find_device(config.compute.device))})


def defaults(data: str, method: str, norm: str = "linf", eps: object = None) -> dict[str, Any]:
    """Return the recipe of a data set for a method, by short names.

    Args:
        data: Name of the data set.
        method: Name of the method; the recipe may set its options.
        norm: Norm of the attack.
        eps: Radius of the attack; by default the recipe's radius in this norm.

    Raises:
        UserError: If there is no recipe for the data set, or the recipe has no radius in the norm and `eps` is None.
    """
    kind = data.partition(":")[0]
    if kind not in RECIPES:
        raise unknown("data set", kind, DATASETS.names())
    recipe = RECIPES[kind]
    special = recipe.pop("methods", {}).get(method, {})
    budgets = {"linf": recipe.pop("eps"), **recipe.pop("budgets", {})}
    if eps is None and norm in NORMS and norm not in budgets:
        raise UserError(f"The recipe of {kind} has no radius in {norm}: give --eps NUMBER. {NORMS[norm]}")
    radius = budgets.get(norm) if eps is None else eps
    return {
        **recipe,
        "norm": norm,
        "eps": radius,
        "data": data,
        "method": method,
        # The robust accuracy of standard training is often highest in the first, nearly random epoch.
        "select": "clean" if method == "standard" else "robust",
        **{option: radius if value == "eps" else value for option, value in special.items()},
    }
