"""Measure the cost of each method: forward passes, milliseconds a step, images a second, peak memory, s an epoch.

The seconds of an epoch are estimated: gradients and SGD updates for so many images, and a validation whose forward
passes are counted. Loading the images and evaluation are not in them. Published seconds stand beside them where the
settings are those of a published table.

examples:
  adv-train bench
  adv-train bench --device cuda --batch-size 128 --out results/bench.json
  adv-train bench --model small-cnn --batch-size 64 --accelerate compile --methods fast-at,pgd-at

On two cores of a CPU, compiled steps of standard, fast-at and pgd-at took 0.85 of the time of eager steps (the last
example; the record is results/bench-compile-cpu.json). Compilation takes seconds to minutes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train import accelerate, bars, bench
from adv_train.cli.command_line import Progress, options
from adv_train.config import TrainingConfig
from adv_train.devices import find_device
from adv_train.files import make_folder, replace_file
from adv_train.methods import METHODS
from adv_train.reproduction.cost import validation
from adv_train.reproduction.seconds import published_seconds
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Bench(Progress):
    """The benchmark.

    Attributes:
        model: Network (see `adv-train list models`).
        batch_size: Images in a training step.
        image_size: Side of the random square images, in pixels.
        eps: Radius of the attack.
        repeats: Number of timed rounds; each round takes one step of every method.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Arithmetic of the training steps.
        channels_last: Use the channels-last memory layout, which is faster on GPU matrix units.
        accelerate: Also time each method with `graph` or `compile`, as `adv-train fit --accelerate` runs it.
        epoch_images: Training images of the epoch whose seconds are estimated.
        validation_images: Images of its validation.
        validation_steps: Steps of PGD in its validation.
        methods: Measure only standard training and these methods, separated by commas (see `adv-train list methods`).
        out: File to write the figures to, as JSON.
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
    epoch_images: Annotated[int, Range(1)] = 50_000
    validation_images: Annotated[int, Range(1)] = 500
    validation_steps: Annotated[int, Range(1)] = 5
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


def _validation(command: Bench) -> float:
    """Count the forward passes of single images in the validation after an epoch."""
    most, steps = command.validation_images, command.validation_steps
    settings = TrainingConfig(epochs=1, batch_size=2, validation_images=most, validation_steps=steps)
    return validation(settings, most)


def run(words: Sequence[str]) -> int:
    """Measure the methods and print a table."""
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
    stated = {name: getattr(command, name) for name in ("epoch_images", "validation_images", "validation_steps")}
    epoch = bench.Epoch(command.epoch_images, _validation(command))
    rows = bench.run(model_name=command.model, device=device, epoch=epoch, progress=shown, **settings)
    published = published_seconds([row.name for row in rows], command.model, command.image_size, command.eps)
    print(bench.table(rows))
    print(
        f"\nAn epoch of {command.epoch_images:,} images, estimated; validation on {command.validation_images:,} images "
        f"with {command.validation_steps} PGD steps:\n\n{bench.epochs(rows, published)}"
    )
    if command.out:
        make_folder(command.out.parent)
        kept = {"model": command.model, "device": str(device), **settings, **stated}
        record = bench.record(rows, device, settings=kept, published=published)
        replace_file(command.out, (json.dumps(record, indent=2) + "\n").encode())
        print(f"Written to {command.out}")
    return 0
