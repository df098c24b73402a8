"""Measure what each method costs: forward passes counted, milliseconds, images a second, peak memory.

examples:
  adv-train bench
  adv-train bench --device cuda --batch-size 128 --out results/bench.json
  adv-train bench --model small-cnn --batch-size 64 --accelerate compile --methods fast-at,pgd-at

On one core of a busy CPU, compiled steps of standard, fast-at and pgd-at took 0.72 to 0.83 of the eager time
(small-cnn, batch 64; preact-resnet-18 of an eighth of the width, batch 32), after up to three minutes of compilation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train import accelerate, bars, bench
from adv_train.cli.command_line import Progress, options
from adv_train.devices import find_device
from adv_train.files import make_folder, replace_file
from adv_train.methods import METHODS
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Bench(Progress):
    """The benchmark.

    Attributes:
        model: Network (see `adv-train list`).
        batch_size: Images a step.
        image_size: Side of the random images.
        eps: Radius of the attack.
        repeats: Timed rounds.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: Arithmetic of the steps.
        channels_last: Memory layout that a GPU's matrix units prefer.
        accelerate: Also take each step as `graph` or `compile` of adv-train fit do, beside the eager one.
        methods: Only these beside standard training, with commas between (see `adv-train list`).
        out: Also write the figures as JSON.
    """

    model: str = "preact-resnet-18"
    batch_size: Annotated[int, Range(2)] = 8
    image_size: Annotated[int, Range(8)] = 32
    eps: Annotated[float, Range(0, 1)] = 8 / 255
    repeats: Annotated[int, Range(1)] = 10
    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = False
    accelerate: Literal["off", "graph", "compile"] = "off"
    methods: str | None = None
    out: Path | None = None


def read(words: Sequence[str]) -> Bench:
    """Read the command line."""
    return options(Bench, words, "adv-train bench", __doc__ or "")


def _names(methods: str | None) -> list[str] | None:
    if methods is None:
        return None
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        METHODS.find(name)
    return names


def run(words: Sequence[str]) -> int:
    """Measure, and print a table."""
    command = read(words)
    device = find_device(command.device)
    shown = bars.are_shown(command.shown)
    settings: dict[str, Any] = {
        "batch_size": command.batch_size,
        "image_size": command.image_size,
        "eps": command.eps,
        "repeats": command.repeats,
        "precision": command.precision,
        "channels_last": command.channels_last,
        "accelerate": command.accelerate,
        "only": _names(command.methods),
    }
    accelerate.check(command.accelerate, device)
    rows = bench.run(model_name=command.model, device=device, progress=shown, **settings)
    print(bench.table(rows))
    if command.out:
        make_folder(command.out.parent)
        record = bench.record(rows, model=command.model, device=str(device), **settings)
        replace_file(command.out, (json.dumps(record, indent=2) + "\n").encode())
        print(f"Written to {command.out}")
    return 0
