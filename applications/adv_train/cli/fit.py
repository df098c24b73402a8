"""Train one model into a run folder; if training is interrupted, the same command resumes it.

examples:
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train fit --preset cifar10-8-fast-bat --out runs/b
  adv-train fit --preset cifar10-16-pgd-at --steps 3 --seed 1 --out runs/c
  adv-train fit --data cifar10 --method fast-at --norm l2 --out runs/f
  adv-train fit --data imagefolder:photos --method fast-at --eps 4/255 --epochs 10 --out runs/d
  adv-train fit --preset cifar10-8-fast-bat --precision bf16 --channels-last --accelerate graph --out runs/g
  adv-train fit --preset cifar10-8-fast-at --ema 0.9995 --schedule one-cycle --lr 0.1 --epochs 100 --out runs/f
  adv-train fit --config my.yaml --lr 0.1 --out runs/e     (flags override the file)
  adv-train fit --out runs/a                               (resumes runs/a with its own configuration)
  adv-train fit --method fast-bat --help                   (the options of a method, with their defaults)
  torchrun --nproc-per-node 2 -m adv_train fit --preset cifar10-8-pgd-at --out runs/g      (on two GPUs)

A configuration file is YAML with the names of the flags, flat (`eps: 8/255`) or in sections (`threat: {eps: 8/255}`);
RUN/config.yaml is an example. Flags override the file, the file overrides the preset, and the preset overrides the
recipe of the data set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from adv_train import models
from adv_train.attacks.autoattack import LEAST_CLASSES
from adv_train.cli.command_line import Progress
from adv_train.cli.configured import chosen, configured
from adv_train.config import RunConfig, resolve
from adv_train.devices import find_device
from adv_train.methods import METHODS
from adv_train.observers import OBSERVERS, Observer
from adv_train.ranks import started
from adv_train.records import RunFolder
from adv_train.train import fit
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Run(Progress):
    """The run folder, and where the configuration comes from.

    Attributes:
        out: Run folder; by default a folder in runs/ named after the data, method, norm, eps and seed.
        preset: Configuration of one cell of a published table (see `adv-train list presets`).
        config: YAML file; its values override the preset, and flags override the file.
        observe: Observers of the training, separated by commas (see `adv-train list observers`).
        log_every: Also log loss, learning rate and images a second every so many steps, to RUN/steps.jsonl and to the
            observers.
    """

    out: Path | None = None
    preset: str | None = None
    config: Path | None = None
    observe: str | None = None
    log_every: Annotated[int, Range(1)] | None = None


def run(words: Sequence[str]) -> int:
    """Train the model and print the result."""
    command, flags = read(words)
    config = configuration(command, flags)
    out = command.out or _default_folder(config)
    epochs = config.training.epochs
    late = [milestone for milestone in config.optimizer.milestones if milestone >= epochs]
    with started(find_device(config.compute.device)) as ranks:
        if late and ranks.first:
            told = ", ".join(map(str, late))
            print(f"Note: the run has {epochs} epochs, so the rate does not fall at milestone {told}.", file=sys.stderr)
        result = fit(
            config,
            out,
            progress=command.shown,
            observers=_observers(command.observe),
            log_every=command.log_every,
        )
    if not ranks.first:
        return 0
    if result.resumed_after == epochs:
        print(f"{out} is already finished ({epochs} epochs); nothing was changed.")
    else:
        print(f"{out} is trained: {epochs} epochs of {config.method_name} on {config.data.name}.")
    prepared = sum(line.get("prepare_seconds", 0.0) for line in result.run.timing())
    if prepared:
        print(f"Preparing --accelerate {config.compute.accelerate} took {prepared:.1f} s of the training time.")
    best = result.best
    averaged = config.training.average_after(best["epoch"])
    told = f" (averaged weights, {averaged})" if averaged else ""
    print(
        f"best.pt is epoch {best['epoch']}{told}: on {best.get('val_images', 'the')} validation images "
        f"SA {best['val_sa']:.1%}, "
        f"RA (PGD-{config.training.validation_steps}) {best['val_ra']:.1%}."
    )
    print(f"Next: adv-train eval {out}{'' if result.classes >= LEAST_CLASSES else ' --no-autoattack'}")
    return 0


def configuration(command: Run, flags: Mapping[str, Any]) -> RunConfig:
    """Make the configuration from the flags; with `--out` alone, read the configuration in the run folder."""
    folder = RunFolder(command.out) if command.out else None
    complete_elsewhere = command.preset or command.config or "data" in flags or "method" in flags
    if folder and folder.config_file.is_file() and not complete_elsewhere:
        config = folder.config()
        if "model" not in flags:
            models.require_trusted(config.model.name, f"`{folder.config_file}`")
        return config.changed(flags)
    return resolve(flags, preset=command.preset, file=command.config)


def read(words: Sequence[str]) -> tuple[Run, dict[str, Any]]:
    """Read the flags; the method and the model determine which of their options exist."""
    about = (__doc__ or "") + ("" if chosen(words).get("method") else _table_of_options())
    return configured(Run, words, "adv-train fit", about)


def _table_of_options() -> str:
    lines = []
    for method in METHODS.names():
        told = [f"--{name.replace('_', '-')} {leaf.default}" for name, leaf in METHODS.options(method).items()]
        lines.append(f"  {method:<12} {'  '.join(told)}")
    return "\noptions of each method, with their defaults (None: derived from other options):\n" + "\n".join(lines)


def _observers(names: str | None) -> list[Observer]:
    return [OBSERVERS.create(name.strip()) for name in (names or "").split(",") if name.strip()]


def _default_folder(config: RunConfig) -> Path:
    data = Path(config.data.name.partition(":")[2]).name or config.data.name
    norm = "" if config.threat.norm == "linf" else f"-{config.threat.norm}"
    return Path("runs") / f"{data}-{config.method_name}{norm}-eps{config.threat.eps:.3g}-seed{config.training.seed}"
