"""The parts of `pyautoattack` in turn, each rank with some of the batches that one process would make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adv_train.ranks import Ranks

if TYPE_CHECKING:
    from pyautoattack import AutoAttack


def run_parts(attack: AutoAttack, x: Tensor, y: Tensor, batch_size: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Run the parts of an attack; every rank gets the images and the classes of one process.

    Random numbers of a part follow from the seed and the batch. So a rank takes whole batches of the samples that
    are left, and after each part all learn what became of them.

    Args:
        attack: As the package made it.
        x: Images in single precision.
        y: Labels.
        batch_size: Of the batches.
        ranks: Those that share them.
    """
    if ranks.size == 1:
        found: tuple[Tensor, Tensor] = attack.run_standard_evaluation(x, y, batch_size=batch_size)
        return found
    from pyautoattack import checks

    with torch.no_grad():
        classes = torch.cat([attack.get_logits(batch).argmax(1) for batch in x.split(batch_size)])
    images, accuracies = x.clone(), {"clean": _accuracy(classes, y)}
    parts = attack.attacks_to_run
    for part in parts:
        left = (classes == y).nonzero().squeeze(1)
        own = torch.cat([left[:0], *left.split(batch_size)[ranks.rank :: ranks.size]])
        made, answers = torch.zeros_like(images), torch.zeros_like(classes)
        if len(own) > 0:
            attack.attacks_to_run = [part]
            made[own], answers[own] = attack.run_standard_evaluation(x[own], y[own], batch_size=batch_size)
        images[left], classes[left] = ranks.add(made)[left], ranks.add(answers)[left]
        accuracies[part] = _accuracy(classes, y)
    attack.attacks_to_run = parts
    # The package compares Square with the parts before it, which it did not see together.
    checks.check_square_sr(accuracies, logger=attack.logger)
    return images, classes


def _accuracy(classes: Tensor, y: Tensor) -> float:
    return (classes == y).double().mean().item()
