"""The flags that say what to train: those of every part of a configuration, explained and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from adv_train.cli.command_line import Group, given, group_of
from adv_train.config import PRESETS, RECIPES, SECTIONS, fields, flat, read_yaml, short
from adv_train.leaves import Leaf
from adv_train.methods import METHODS
from adv_train.models import MODELS
from adv_train.records import RunFolder
from adv_train.registry import Registry

T = TypeVar("T")
_REGISTRIES: Mapping[str, Registry[Any]] = {"method": METHODS, "model": MODELS}
_ABOUT = {
    "data": "What to train on.",
    "method": "How to train; the options are those of the method.",
    "model": "What to train.",
    "threat": "What the attack may do.",
    "training": "How long, and what is kept of it.",
    "optimizer": "How a gradient moves the weights, and how far.",
    "compute": "What computes, and how exactly.",
}


def configured(
    kind: type[T],
    words: Sequence[str],
    command: str,
    about: str,
    sections: Sequence[str] = SECTIONS,
    positional: str | None = None,
) -> tuple[T, dict[str, Any]]:
    """Read the flags of a command and, by their short names, those of a configuration.

    Which options there are follows from the method and the model.

    Args:
        kind: A dataclass whose fields are the flags of the command itself.
        words: Of the command line, after the command.
        command: As it is called, for the help and in errors.
        about: A docstring: a description, and examples below a blank line.
        sections: Those parts of a configuration that have flags.
        positional: The flag of the command itself that is written without its name.

    Raises:
        UserError: For a flag that does not exist, or a value that breaks its rule.
        SystemExit: After `--help`.
    """
    own, known = replace(group_of(kind), positional=positional), chosen(words)
    wants_help = any(word in ("-h", "--help") for word in words)
    groups = [own]
    for section in sections:
        leaves = {short(section, leaf.field): leaf for leaf in fields(section, known.get(section))}
        if section in _REGISTRIES and not (wants_help and known.get(section)):
            # Those that do not belong are refused with a word on whose they are.
            leaves |= {name: leaf for name, leaf in _of_all(section).items() if name not in leaves}
        shown = {
            name: replace(leaf, default=known.get(name, leaf.default))
            for name, leaf in leaves.items()
            if name != "extended_from"
        }
        groups.append(Group(section, _ABOUT[section], {name.replace("_", "-"): leaf for name, leaf in shown.items()}))
    found = {name.replace("-", "_"): value for name, value in given(words, groups, command, about).items()}
    names = [flag.replace("-", "_") for flag in own.flags]
    return kind(**{name: found.pop(name) for name in names if name in found}), found


def chosen(words: Sequence[str]) -> dict[str, Any]:
    """Return what is known before the flags are read: what file, preset and recipe say, and the names on the line."""
    named = {key: value for key in ("data", "method", "model", "norm") if (value := _word(words, key)) is not None}
    preset, file, out = _word(words, "preset"), _word(words, "config"), _word(words, "out")
    layers: list[Mapping[str, Any]] = []
    if preset is not None and preset in PRESETS:
        layers.append(PRESETS[preset])
    if file is not None:
        layers.append(read_yaml(Path(file)))
    if not (preset or file or named) and out is not None and RunFolder(Path(out)).config_file.is_file():
        layers.append(RunFolder(Path(out)).config().to_mapping())
    said = flat(*layers, named)
    recipe = RECIPES.get(str(said.get("data")).partition(":")[0], {})
    return flat({key: value for key, value in recipe.items() if key not in ("methods", "budgets")}, said)


def _word(words: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag as it was written last."""
    found = None
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            found = value if equals else (words[position + 1] if position + 1 < len(words) else None)
    return found


def _of_all(section: str) -> dict[str, Leaf]:
    """Return the options of all methods, or models, each with whose it is."""
    registry = _REGISTRIES[section]
    found: dict[str, Leaf] = {}
    for name in registry.names():
        for option, leaf in registry.options(name).items():
            owners = ", ".join(other for other in registry.names() if option in registry.options(other))
            found.setdefault(option, replace(leaf, default=None, help=f"{leaf.help} ({owners})"))
    return found
