"""Train one model into a run folder; the same command goes on where it was interrupted.

examples:
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train fit --preset cifar10-8-fast-bat --out runs/b
  adv-train fit --preset cifar10-16-pgd-at --steps 3 --seed 1 --out runs/c
  adv-train fit --data cifar10 --method fast-at --norm l2 --out runs/f
  adv-train fit --data imagefolder:photos --method fast-at --eps 4/255 --epochs 10 --out runs/d
  adv-train fit --preset cifar10-8-fast-at --ema 0.9995 --schedule one-cycle --lr 0.1 --epochs 100 --out runs/f
  adv-train fit --config my.yaml --lr 0.1 --out runs/e     (flags win over the file)
  adv-train fit --out runs/a                               (goes on with what runs/a says)
  adv-train fit --method fast-bat --help                   (the options of a method, with their defaults)

A configuration file is YAML with the same names, flat (`eps: 8/255`) or by section (`threat: {eps: 8/255}`);
RUN/config.yaml is one. Flags win over the file, the file over the preset, the preset over the recipe of the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adv_train.cli.command_line import Group, Progress, given, group_of
from adv_train.config import PRESETS, RECIPES, SECTIONS, RunConfig, fields, flat, read_yaml, resolve, short
from adv_train.leaves import Leaf
from adv_train.methods import METHODS
from adv_train.models import MODELS
from adv_train.observers import OBSERVERS, Observer
from adv_train.records import RunFolder
from adv_train.registry import Registry
from adv_train.train import fit

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


@dataclass(frozen=True, kw_only=True)
class Run(Progress):
    """Where to, and where from.

    Attributes:
        out: Run folder; by default runs/ and a name made of the choices.
        preset: A named cell of the published tables (see `adv-train list`).
        config: YAML file; beats the preset, flags beat it.
        observe: What else looks on, with commas between (see `adv-train list observers`).
    """

    out: Path | None = None
    preset: str | None = None
    config: Path | None = None
    observe: str | None = None


def run(words: Sequence[str]) -> int:
    """Train, and say what came of it."""
    command, flags = read(words)
    config = configuration(command, flags)
    out = command.out or _default_folder(config)
    result = fit(config, out, progress=command.shown, observers=_observers(command.observe))
    epochs = config.training.epochs
    if result.resumed_after == epochs:
        print(f"{out} is already finished ({epochs} epochs); nothing was changed.")
    else:
        print(f"{out} is trained: {epochs} epochs of {config.method_name} on {config.data.name}.")
    best = result.best
    averaged = config.training.average_after(best["epoch"])
    told = f" (averaged weights, {averaged})" if averaged else ""
    print(
        f"best.pt is epoch {best['epoch']}{told}: on the validation images SA {best['val_sa']:.1%}, "
        f"RA (PGD-{config.training.validation_steps}) {best['val_ra']:.1%}."
    )
    print(f"Next: adv-train eval {out}")
    return 0


def configuration(command: Run, flags: Mapping[str, Any]) -> RunConfig:
    """Make the configuration that the flags ask for; `--out` alone means the one that the run folder holds."""
    folder = RunFolder(command.out) if command.out else None
    complete_elsewhere = command.preset or command.config or "data" in flags or "method" in flags
    if folder and folder.config_file.is_file() and not complete_elsewhere:
        return folder.config().changed(flags)
    return resolve(flags, preset=command.preset, file=command.config)


def read(words: Sequence[str]) -> tuple[Run, dict[str, Any]]:
    """Read the flags; which options there are follows from the method and the model."""
    own, chosen = group_of(Run), _chosen(words)
    wants_help = any(word in ("-h", "--help") for word in words)
    groups = [own]
    about = (__doc__ or "") + ("" if chosen.get("method") else _table_of_options())
    for section in SECTIONS:
        leaves = {short(section, leaf.field): leaf for leaf in fields(section, chosen.get(section))}
        if section in _REGISTRIES and not (wants_help and chosen.get(section)):
            # Those that do not belong are refused with a word on whose they are.
            leaves |= {name: leaf for name, leaf in _of_all(section).items() if name not in leaves}
        shown = {
            name: replace(leaf, default=chosen.get(name, leaf.default))
            for name, leaf in leaves.items()
            if name != "extended_from"
        }
        groups.append(Group(section, _ABOUT[section], {name.replace("_", "-"): leaf for name, leaf in shown.items()}))
    found = {name.replace("-", "_"): value for name, value in given(words, groups, "adv-train fit", about).items()}
    command = Run(**{name: found.pop(name) for name in [leaf.replace("-", "_") for leaf in own.flags] if name in found})
    return command, found


def _chosen(words: Sequence[str]) -> dict[str, Any]:
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
    chosen = flat(*layers, named)
    recipe = RECIPES.get(str(chosen.get("data")).partition(":")[0], {})
    return flat({key: value for key, value in recipe.items() if key not in ("methods", "budgets")}, chosen)


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


def _table_of_options() -> str:
    lines = []
    for method in METHODS.names():
        told = [f"--{name.replace('_', '-')} {leaf.default}" for name, leaf in METHODS.options(method).items()]
        lines.append(f"  {method:<12} {'  '.join(told)}")
    return "\noptions of each method, with their defaults (None follows from the rest):\n" + "\n".join(lines)


def _observers(names: str | None) -> list[Observer]:
    return [OBSERVERS.create(name.strip()) for name in (names or "").split(",") if name.strip()]


def _default_folder(config: RunConfig) -> Path:
    data = Path(config.data.name.partition(":")[2]).name or config.data.name
    norm = "" if config.threat.norm == "linf" else f"-{config.threat.norm}"
    return Path("runs") / f"{data}-{config.method_name}{norm}-eps{config.threat.eps:.3g}-seed{config.training.seed}"
