"""The methods of a comparison as they are written: `fast-at, pgd-at(steps=3), cifar10-8-fast-bat, mine.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adv_train.config import PRESETS, RunConfig, flat, read_yaml, resolve
from adv_train.errors import UserError, unknown
from adv_train.methods import METHODS
from adv_train.written import items, name_and_options


@dataclass(frozen=True)
class Contender:
    """One of the methods to compare.

    Attributes:
        name: What to call it: a method, a preset or the stem of a YAML file, with its options.
        base: What the preset or file says, or the method's name.
        options: Values of its own by short name, of any key of a configuration.
    """

    name: str
    base: Mapping[str, Any]
    options: Mapping[str, str]

    @classmethod
    def read(cls, text: str) -> Contender:
        """Read one.

        Raises:
            UserError: When it is malformed, or names neither a method, nor a preset, nor a file.
        """
        name, options = name_and_options(text, "methods")
        if name in METHODS.names():
            base: Mapping[str, Any] = {"method": name}
        elif name in PRESETS:
            base = {key: value for key, value in PRESETS[name].items() if key != "about"}
        elif name.endswith((".yaml", ".yml")):
            base, name = read_yaml(Path(name)), Path(name).stem
        else:
            raise unknown("method", name, METHODS.names())
        if "seed" in options:
            raise UserError(f"`{text}` has a seed of its own, but seeds are paired: leave it out.")
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        return cls(f"{name}({told})" if told else name, base, options)

    @property
    def folder(self) -> str:
        """Its name without what shells and file systems do not like."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-")

    def config(self, common: Mapping[str, Any], flags: Mapping[str, Any], seed: int) -> RunConfig:
        """Return what it trains with a seed: its options win over flags, these over its base, that over the common.

        Args:
            common: Values of a file for all methods, by short name or section.
            flags: Values of the command line for all methods, by short name.
            seed: Of the run.

        Raises:
            UserError: When a name or value is wrong, or nothing says which data to train on.
        """
        return resolve(flat(common, self.base, flags, self.options, {"seed": seed}))


def contenders(text: str) -> list[Contender]:
    """Read the methods of a comparison, with commas between.

    Raises:
        UserError: When no method is given, a method cannot be read, or two methods would share a run folder.
    """
    found = [Contender.read(item) for item in items(text)]
    folders = [contender.folder for contender in found]
    for contender in found:
        if folders.count(contender.folder) > 1:
            raise UserError(f"`{contender.name}` is there twice in --methods.")
    if not found:
        raise UserError("Give --methods what to compare, such as --methods fast-at,pgd-at(steps=3),fast-bat.")
    return found
