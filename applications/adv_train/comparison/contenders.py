"""Parse the methods of a comparison: `fast-at, pgd-at(steps=3), cifar10-8-fast-bat, mine.yaml`."""

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
        name: Its name in tables: a method, a preset or the stem of a YAML file, with its options.
        base: The configuration of the preset or the file, or only the name of the method.
        options: Values in parentheses after the name, by the short name of any configuration key.
    """

    name: str
    base: Mapping[str, Any]
    options: Mapping[str, str]

    @classmethod
    def read(cls, text: str) -> Contender:
        """Parse one method.

        Raises:
            UserError: If the text is malformed, or its name is not that of a method, a preset or a YAML file.
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
        if "method" in options:
            raise UserError(f"`{text}` sets another method: write that method in its place.")
        if "seed" in options:
            raise UserError(f"`{text}` sets a seed, but all methods of a comparison use the same seeds: leave it out.")
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        return cls(f"{name}({told})" if told else name, base, options)

    @property
    def folder(self) -> str:
        """Its name without the characters that are special to shells and file systems."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-")

    def config(self, common: Mapping[str, Any], flags: Mapping[str, Any], seed: int) -> RunConfig:
        """Return the configuration of its run with a seed.

        The method's options override `flags`, `flags` override its base, and its base overrides `common`.

        Args:
            common: Values for all methods from a file, by short name or section.
            flags: Values for all methods from the command line, by short name.
            seed: Seed of the run.

        Raises:
            UserError: If a name or a value is invalid, or no data set is given.
        """
        # A file of a run that was given more epochs says so; here every method is trained anew.
        return resolve(flat(common, self.base, flags, self.options, {"seed": seed, "extended_from": None}))


def contenders(text: str) -> list[Contender]:
    """Parse the methods of a comparison, separated by commas.

    Raises:
        UserError: If no method is given, a method is malformed, or two methods would share a run folder.
    """
    found = [Contender.read(item) for item in items(text)]
    folders = [contender.folder for contender in found]
    for contender in found:
        if folders.count(contender.folder) > 1:
            raise UserError(f"--methods contains `{contender.name}` twice.")
    if not found:
        raise UserError("Give the methods to compare, such as --methods fast-at,pgd-at(steps=3),fast-bat.")
    return found
