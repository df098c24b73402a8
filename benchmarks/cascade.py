"""Compare the cost of AutoAttack, `cascade` and `apgd` on a robust model of the digits.

    python -m benchmarks.cascade --out runs/cascade --eps 0.1
    python -m benchmarks.cascade --out runs/cascade --eps 0.1 --judged-at 0.25 --record results/cascade-cpu.json

trains the model in a run folder, or loads the one that is there, and runs each attack on it, in one process on one
thread. The table counts the calls of the model (passes), the images in them (image passes), and those images whose
gradient is computed too (with gradient). `--record` puts the figures into a record, from which the documentation makes
its table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adv_train
from adv_train import data
from adv_train.attacks import ATTACKS
from adv_train.report.sections import versions
from adv_train.tables import Cell, write_table
from adv_train.threat import Threat

ATTACKS_BY_DEFAULT = "autoattack", "cascade", "apgd"


@dataclass(frozen=True)
class Timed:
    """The result of an attack, and its cost."""

    robust: Tensor
    seconds: float
    cpu_seconds: float
    passes: int
    image_passes: int
    image_gradients: int


def timed(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat, attack: str, batch_size: int) -> Timed:
    """Run an attack and count the passes of the model."""
    counts = [0, 0, 0]

    def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        counts[0] += 1
        counts[1] += len(arguments[0])
        counts[2] += len(arguments[0]) * (arguments[0].requires_grad and torch.is_grad_enabled())

    handle = model.register_forward_pre_hook(count)
    started, cpu = time.perf_counter(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = ATTACKS.read(attack, "attack")(model, images, labels, threat, seed=0, batch_size=batch_size)
    finally:
        handle.remove()
    return Timed(found.robust, time.perf_counter() - started, time.process_time() - cpu, *counts)


def rows(found: dict[str, Timed]) -> list[list[Cell]]:
    """Return one table row for each attack, compared with the first."""
    first = next(iter(found.values()))
    made: list[list[Cell]] = []
    for name, each in found.items():
        made.append(
            [
                name,
                f"{100 * each.robust.double().mean().item():.2f}",
                f"{each.seconds:.1f}",
                f"{first.seconds / each.seconds:.2f}",
                f"{each.cpu_seconds:.1f}",
                f"{first.cpu_seconds / each.cpu_seconds:.2f}",
                str(each.passes),
                str(each.image_passes),
                str(each.image_gradients),
                str(int((each.robust & ~first.robust).sum())),
                str(int((~each.robust & first.robust).sum())),
            ]
        )
    return made


def entry(found: dict[str, Timed], trained: float, judged: float) -> dict[str, Any]:
    """Return the figures of a model as an entry of the record."""
    first = next(iter(found.values()))
    attacks = {
        name: {
            "robust": int(each.robust.sum()),
            "robust_only_here": int((each.robust & ~first.robust).sum()),
            "broken_only_here": int((~each.robust & first.robust).sum()),
            "cpu_seconds": each.cpu_seconds,
            "image_passes": each.image_passes,
            "passes": each.passes,
        }
        for name, each in found.items()
    }
    return {
        "trained_at": trained,
        "judged_at": judged,
        "images": len(first.robust),
        "versions": versions(),
        "attacks": attacks,
    }


def put(new: dict[str, Any], path: Path) -> None:
    """Put an entry into a record; it replaces the one of the same radii and number of images."""
    old = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.is_file() else []
    keys = ("trained_at", "judged_at", "images")
    kept = [each for each in old if [each[key] for key in keys] != [new[key] for key in keys]]
    path.write_text(json.dumps({"format": 1, "entries": [*kept, new]}, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """Train or load the model, run the attacks and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cascade"), help="run folder of the model")
    parser.add_argument("--eps", type=float, default=0.1, help="training radius in the maximum norm")
    parser.add_argument("--judged-at", type=float, help="radius of the attacks; by default the training radius")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=360, help="number of test images")
    parser.add_argument("--repeat", type=int, default=1, help="repeat the test images this many times")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--attack", action="append", help="may be repeated; the others are compared with the first")
    parser.add_argument("--record", type=Path, help="JSON file for the figures; other entries of it are kept")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if not (options.out / "best.pt").is_file():
        chosen: dict[str, Any] = {
            "data": "digits",
            "method": "pgd-at",
            "model": "small-cnn",
            "device": "cpu",
            "lr": 0.05,
        }
        adv_train.fit(None, out=options.out, progress=False, eps=options.eps, epochs=options.epochs, **chosen)
    model = adv_train.load_model(options.out)
    split = data.load("digits", root="").test
    x = split.images[: options.images]
    x = (x.float() / 255 if x.dtype == torch.uint8 else x).repeat(options.repeat, 1, 1, 1)
    y = split.labels[: options.images].repeat(options.repeat)
    threat = Threat("linf", options.judged_at or options.eps)
    found = {
        name: timed(model, x, y, threat, name, options.batch_size) for name in options.attack or ATTACKS_BY_DEFAULT
    }
    header = ("attack", "robust %", "s", "speed-up", "CPU s", "speed-up", "passes", "image passes", "with gradient")
    print(write_table((*header, "robust only here", "broken only here"), rows(found)))
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(x)} images, linf, eps {threat.eps:g}, {weights} weights, batches of {options.batch_size}, one thread")
    if options.record is not None:
        put(entry(found, options.eps, threat.eps), options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
