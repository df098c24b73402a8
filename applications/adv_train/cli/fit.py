"""Train one model into a run folder; the same command goes on where it was interrupted.

examples:
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train fit --preset cifar10-8-fast-bat --out runs/b
  adv-train fit --preset cifar10-16-pgd-at --steps 3 --seed 1 --out runs/c
  adv-train fit --data imagefolder:photos --method fast-at --eps 4/255 --epochs 10 --out runs/d
  adv-train fit --config my.yaml --lr 0.1 --out runs/e     (flags win over the file)
  adv-train fit --out runs/a                               (goes on with what runs/a says)

A configuration file is YAML with the same names: `data: digits`, `eps: 8/255`, `options: {steps: 2}`.
RUN/config.yaml is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adv_train.cli.flags import add_progress_flags
from adv_train.data import AUGMENTATIONS
from adv_train.config import SCHEDULES, SELECTIONS, RunConfig, check_values
from adv_train.precision import PRECISIONS
from adv_train.recipes import resolve
from adv_train.records import RunFolder
from adv_train.train import fit

_CONFIG_FLAGS = {
    "data": ("NAME", "digits, cifar10, cifar100 or imagefolder:PATH (a folder of class folders)"),
    "method": ("NAME", "training method (see `adv-train list`)"),
    "model": ("NAME", "network (see `adv-train list`)"),
    "activation": ("NAME", "non-linearity of the network: relu or silu"),
    "eps": ("BUDGET", "radius of the attack, such as 8/255 or 0.03, for images in [0, 1]"),
    "epochs": ("N", "passes over the training images"),
    "batch_size": ("N", "images a step"),
    "lr": ("X", "largest learning rate of the schedule"),
    "schedule": ("NAME", f"shape of the learning rate: {', '.join(SCHEDULES)}"),
    "momentum": ("X", "of SGD"),
    "weight_decay": ("X", "of SGD"),
    "select": ("NAME", f"what chooses best.pt on the validation images: {', '.join(SELECTIONS)}"),
    "validation_steps": ("N", "PGD steps of the validation after each epoch"),
    "seed": ("N", "fixes weights, order, augmentation and attack noise"),
    "device": ("NAME", "auto (default), cpu, cuda, cuda:1, mps"),
    "precision": ("NAME", f"arithmetic of training: {', '.join(PRECISIONS)} (default: fp32)"),
    "data_root": ("FOLDER", "where the data sets are, or are downloaded to (default: data)"),
    "train_limit": ("N", "use only so many training images, for a quick look"),
    "size": ("N", "for an image folder: resize the shorter side to N pixels and crop the centre"),
    "augment": ("NAME", f"in place of the data set's own: {', '.join(AUGMENTATIONS)}"),
}
_SWITCHES = {
    "momentum_cycling": "lower the momentum by 0.1 where the learning rate peaks",
    "skip_unreadable": "for an image folder: leave out files that cannot be read",
    "channels_last": "keep the weights in the memory layout that a GPU's matrix units prefer",
}
_OPTION_FLAGS = {
    "start": ("NAME", "where the attack starts: uniform or zero"),
    "attack_loss": ("NAME", "what the attack maximises (see `adv-train list`)"),
    "train_loss": ("NAME", "what training minimises"),
    "steps": ("N", "attack steps (pgd-at, fast-bat)"),
    "step": ("X", "size of an attack step, such as 10/255"),
    "direction": ("NAME", "attack direction: gradient or sign (fast-bat)"),
    "curvature": ("X", "curvature of the implicit gradient (fast-bat)"),
    "ig_weight": ("X", "weight of the implicit gradient: 1 as published, 0 none, negative reversed (fast-bat)"),
    "coefficient": ("X", "weight of the alignment term (fast-at-ga)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; values stay text, because the configuration checks them whatever they come from."""
    unset = argparse.SUPPRESS
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/ and a name made of the choices)")
    parser.add_argument("--preset", metavar="NAME", help="a named cell of the published tables (see `adv-train list`)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file; beats the preset, flags beat it")
    for name, (metavar, text) in _CONFIG_FLAGS.items():
        parser.add_argument(_flag(name), metavar=metavar, help=text, default=unset)
    for name, text in _SWITCHES.items():
        parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=unset, help=text)
    options = parser.add_argument_group("options of the methods")
    for name, (metavar, text) in _OPTION_FLAGS.items():
        options.add_argument(_flag(name), metavar=metavar, help=text, default=unset)
    add_progress_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    config = configuration(arguments)
    out = Path(arguments.out) if arguments.out else _default_folder(config)
    result = fit(config, out, progress=arguments.progress)
    if result.resumed_after == config.epochs:
        print(f"{out} is already finished ({config.epochs} epochs); nothing was changed.")
    else:
        print(f"{out} is trained: {config.epochs} epochs of {config.method} on {config.data}.")
    best = result.best
    print(
        f"best.pt is epoch {best['epoch']}: on the validation images SA {best['val_sa']:.1%}, "
        f"RA (PGD-{config.validation_steps}) {best['val_ra']:.1%}."
    )
    print(f"Next: adv-train eval {out}")
    return 0


def configuration(arguments: argparse.Namespace) -> RunConfig:
    """Make the configuration that the flags ask for; `--out` alone means the one that the run folder holds."""
    given = vars(arguments)
    flags: dict[str, Any] = {name: given[name] for name in (*_CONFIG_FLAGS, *_SWITCHES) if name in given}
    options = {name: given[name] for name in _OPTION_FLAGS if name in given}
    if options:
        flags["options"] = options
    folder = RunFolder(Path(arguments.out)) if arguments.out else None
    complete_elsewhere = arguments.preset or arguments.config or "data" in flags or "method" in flags
    if folder and folder.config_file.is_file() and not complete_elsewhere:
        return folder.config().with_values(check_values(flags))
    return resolve(flags, preset=arguments.preset, file=arguments.config)


def _default_folder(config: RunConfig) -> Path:
    data = Path(config.data.partition(":")[2]).name or config.data
    return Path("runs") / f"{data}-{config.method}-eps{config.eps:.3g}-seed{config.seed}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
