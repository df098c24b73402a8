"""The flags of a training configuration: their help, and their values on a command line."""

from __future__ import annotations

from collections import Counter
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
    "data": "The images to train on.",
    "method": "The training method and its options.",
    "model": "The network to train.",
    "threat": "The norm and the radius of the attack.",
    "training": "The length of the training, its validation, and the averaging of its weights.",
    "optimizer": "The optimiser and the schedule of its learning rate.",
    "compute": "The device and its arithmetic.",
}


def configured(
    kind: type[T],
    words: Sequence[str],
    command: str,
    about: str,
    sections: Sequence[str] = SECTIONS,
    positional: str | None = None,
) -> tuple[T, dict[str, Any]]:
    """Read the flags of a command and the flags that set keys of a configuration.

    The method and the model determine which of their options exist.

    Args:
        kind: A dataclass whose fields are the flags of the command itself.
        words: The words of the command line that follow the command.
        command: Name of the command, such as ``adv-train fit``, for the help and the errors.
        about: A description, a blank line, and examples, as in a module's docstring.
        sections: The sections of a configuration whose keys are flags of this command.
        positional: Name of the field of `kind` that is a positional argument.

    Returns:
        The command's own flags, and the configuration's values by short name.

    Raises:
        UserError: If a flag does not exist, or a value is invalid.
        SystemExit: After `--help`.
    """
    own, known = replace(group_of(kind), positional=positional), chosen(words)
    wants_help = any(word in ("-h", "--help") for word in words)
    groups = [own]
    for section in sections:
        leaves = {short(section, leaf.field): leaf for leaf in fields(section, known.get(section))}
        if section in _REGISTRIES and not (wants_help and known.get(section)):
            # The options of other methods are accepted here, so that a later error can say which method has them.
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
    """Return the values that decide which flags exist: those of the file, the preset and the recipe, and the names.

    The names are the values of ``--data``, ``--method``, ``--model`` and ``--norm`` on the command line.
    """
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
    """Return the last value that the command line gives to a flag."""
    found = None
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            found = value if equals else (words[position + 1] if position + 1 < len(words) else None)
    return found


def _of_all(section: str) -> dict[str, Leaf]:
    """Return the options of all methods (or models); the help of each names the methods (or models) that have it."""
    registry = _REGISTRIES[section]
    found: dict[str, dict[str, Leaf]] = {}
    for name in registry.names():
        for option, leaf in registry.options(name).items():
            found.setdefault(option, {})[name] = leaf
    return {
        option: replace(next(iter(leaves.values())), default=None, help=_shared_help(section, leaves))
        for option, leaves in found.items()
    }


def _shared_help(section: str, leaves: Mapping[str, Leaf]) -> str:
    """Return the help of an option that several methods have, perhaps with different texts and defaults."""
    text = next(iter(leaves.values())).help
    if len({leaf.help for leaf in leaves.values()}) > 1:
        clauses = Counter(leaf.help.partition(";")[0].partition(". ")[0].rstrip(".") for leaf in leaves.values())
        text = max(clauses, key=lambda clause: (clauses[clause], -len(clause)))
        text += f"; details depend on the {section}, see `--{section} NAME --help`."
    others = [name for name in _REGISTRIES[section].names() if name not in leaves]
    if not others:
        return text
    return f"{text} ({'all but ' + ', '.join(others) if len(others) < len(leaves) else ', '.join(leaves)})"
