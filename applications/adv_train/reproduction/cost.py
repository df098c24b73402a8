"""Estimate the cost of a table: forward passes computed from the methods, seconds from one timed forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from adv_train import models
from adv_train.attacks import ATTACKS
from adv_train.attacks.base import GRADIENT
from adv_train.bench.count import flops
from adv_train.comparison import Planned
from adv_train.config import TrainingConfig
from adv_train.data import Facts
from adv_train.devices import find_device
from adv_train.precision import computed_in
from adv_train.reproduction.planned import Block, Blocks
from adv_train.trainer import ALIGNED

_TIMED = 16
"""Images of the timed pass on a CPU; an accelerator is slower per image with so few, and gets a batch of training."""

_CHECKPOINTS = 2


@dataclass(frozen=True)
class Cost:
    """The cost of a cell of the table.

    Attributes:
        name: Name of the cell.
        runs: Number of runs that are not finished.
        training: Forward passes of single images for training a run, including validation.
        judging: Forward passes of single images for evaluating both checkpoints of a run, if its accuracies are the
            published ones; an accuracy that is not published counts as 1.
        uncounted: Names of the attacks whose cost is not known, and not contained in `judging`.
        flops: Floating point operations of a forward pass of one image.
        seconds: Seconds of a forward pass of one image on this device.
    """

    name: str
    runs: int
    training: float
    judging: float
    uncounted: tuple[str, ...]
    flops: float
    seconds: float

    @property
    def hours(self) -> float:
        """Hours for all unfinished runs, one after another."""
        return self.runs * (self.training + self.judging) * self.seconds / 3_600


def costs(planned: Blocks) -> list[Cost]:
    """Estimate the cost of every cell, in the order of the table; each network is timed once."""
    timed: dict[str, tuple[float, float]] = {}
    found = {m.name: _cost(m, block, timed) for block in planned.blocks for m in block.plan.methods}
    return [found[name] for name in planned.table.cells if name in found]


def _cost(method: Planned, block: Block, timed: dict[str, tuple[float, float]]) -> Cost:
    config, facts = method.config, block.plan.facts
    key = f"{config.model}, {facts.arguments['image_size']}, {config.compute}"
    if key not in timed:
        timed[key] = _pass(method, facts)
    operations, seconds = timed[key]
    epoch = method.forwards * facts.train + validation(config.training, facts.validation)
    published = {name: figure.mean / 100 for name, figure in block.published[method.name].items()}
    clean, robust = published.get("sa", 1.0), published.get("pgd", 1.0)
    found = {
        ATTACKS.name_of(attack): attack.cost(clean, robust, facts.arguments["classes"], config.threat)
        for attack in block.plan.attacks
    }
    judging = block.plan.images * (1 + sum(cost for cost in found.values() if cost is not None))
    uncounted = tuple(name for name, cost in found.items() if cost is None)
    left = sum(not cell.is_done() for cell in method.cells.values())
    training = config.training.epochs * epoch
    return Cost(method.name, left, training, _CHECKPOINTS * judging, uncounted, operations, seconds)


def validation(training: TrainingConfig, images: int) -> float:
    """Count forward passes of single images in one validation, if all images are classified correctly.

    Args:
        training: Settings of the validation.
        images: Size of the validation split.
    """
    validated = min(images, training.validation_images or images)
    # Per image: one clean pass; PGD with a pass before and after its steps; one FGSM step. Two gradients for alignment.
    each = 1 + (2 + GRADIENT * training.validation_steps) + (GRADIENT + 1)
    return each * validated + 2 * GRADIENT * min(validated, ALIGNED)


def _pass(method: Planned, facts: Facts) -> tuple[float, float]:
    """Return the floating point operations and the seconds of a forward pass, for one image."""
    config, device = method.config, find_device(method.config.compute.device)
    model = models.create(config.model.name, **facts.arguments, seed=0, **config.model.options).to(device)
    side = facts.arguments["image_size"]
    images = _TIMED if device.type == "cpu" else config.training.batch_size
    x = torch.rand(images, facts.arguments["channels"], side, side).to(device)
    if config.compute.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), computed_in(config.compute.precision, device):

        def forward() -> None:
            model(x).sum().item()  # waits for the device

        operations = flops(forward)
        return operations / images, min(_seconds(forward) for _ in range(3)) / images


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
