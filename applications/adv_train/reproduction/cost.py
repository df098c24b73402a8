"""What a table will take: forward passes counted from the methods, seconds from one pass timed here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from adv_train import models
from adv_train.attacks import APGD, PGD, Attack
from adv_train.bench.count import flops
from adv_train.comparison import Planned
from adv_train.config import TrainingConfig
from adv_train.data import Facts
from adv_train.devices import find_device
from adv_train.reproduction.planned import Block, Blocks
from adv_train.trainer import ALIGNED

_GRADIENT = 2
"""Forward passes that a gradient in the images costs, the pass itself among them: the weights are held constant."""

_APGD_CE, _APGD_T, _OTHERS = 100 * _GRADIENT, 9 * 100 * _GRADIENT, 9 * 100 * (_GRADIENT + 1) + 5_000
"""Forward passes of AutoAttack on an image that nothing breaks: APGD-CE; APGD-T; FAB-T and Square."""

_TIMED = 16
_CHECKPOINTS = 2


@dataclass(frozen=True)
class Cost:
    """What a cell takes.

    Attributes:
        name: Of the cell.
        runs: How many are left to do.
        training: Forward passes of an image that training a run takes, validation among them.
        judging: The same for both checkpoints of a run that is as robust as published; where nothing is, one that no
            attack breaks.
        flops: Floating point operations of a forward pass of an image.
        seconds: Of a forward pass of an image on this device.
    """

    name: str
    runs: int
    training: float
    judging: float
    flops: float
    seconds: float

    @property
    def hours(self) -> float:
        """Of all runs, one after another."""
        return self.runs * (self.training + self.judging) * self.seconds / 3_600


def costs(planned: Blocks) -> list[Cost]:
    """Estimate every cell, in the order of the table; each network is timed once."""
    timed: dict[str, tuple[float, float]] = {}
    found = {m.name: _cost(m, block, timed) for block in planned.blocks for m in block.plan.methods}
    return [found[name] for name in planned.table.cells if name in found]


def _cost(method: Planned, block: Block, timed: dict[str, tuple[float, float]]) -> Cost:
    config, facts = method.config, block.plan.facts
    key = f"{config.model}, {facts.arguments['image_size']}, {config.compute.device}"
    if key not in timed:
        timed[key] = _pass(method, facts)
    operations, seconds = timed[key]
    epoch = method.forwards * facts.train + validation(config.training, facts.validation)
    published = {name: figure.mean / 100 for name, figure in block.published[method.name].items()}
    clean, robust = published.get("sa", 1.0), published.get("pgd", 1.0)
    judging = block.plan.images * (1 + sum(_attack(attack, clean, robust) for attack in block.plan.attacks))
    left = sum(not cell.is_done() for cell in method.cells.values())
    return Cost(method.name, left, config.training.epochs * epoch, _CHECKPOINTS * judging, operations, seconds)


def validation(training: TrainingConfig, images: int) -> float:
    """Count forward passes of an image in validating once, on a split of so many images, none of them wrong."""
    validated = min(images, training.validation_images or images)
    # Clean, PGD with a first and a last look, and one step; gradients at two points for the alignment.
    each = 1 + (2 + _GRADIENT * training.validation_steps) + (_GRADIENT + 1)
    return each * validated + 2 * _GRADIENT * min(validated, ALIGNED)


def _attack(attack: Attack, clean: float, robust: float) -> float:
    """Count forward passes of an image: a wrong one is not attacked, and a broken one not again."""
    if isinstance(attack, PGD):
        return (clean + (attack.restarts - 1) * robust) * (1 + _GRADIENT * attack.steps)
    return clean * _APGD_CE + robust * (_APGD_T if isinstance(attack, APGD) else _APGD_T + _OTHERS)


def _pass(method: Planned, facts: Facts) -> tuple[float, float]:
    """Count the operations and the seconds of a forward pass, for each image."""
    config, device = method.config, find_device(method.config.compute.device)
    model = models.create(config.model.name, **facts.arguments, seed=0, **config.model.options).to(device)
    side = facts.arguments["image_size"]
    x = torch.rand(_TIMED, facts.arguments["channels"], side, side).to(device)
    if config.compute.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():

        def forward() -> None:
            model(x).sum().item()  # waits for the device

        operations = flops(forward)
        return operations / _TIMED, min(_seconds(forward) for _ in range(3)) / _TIMED


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
