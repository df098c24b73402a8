"""Runs the parts of `pyautoattack` in turn; each rank takes some of the batches that a single process would make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adv_train.ranks import Ranks

if TYPE_CHECKING:
    from pyautoattack import AutoAttack


def run_parts(attack: AutoAttack, x: Tensor, y: Tensor, batch_size: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Run the parts of an attack; every rank returns the images and the classes that a single process would find.

    The random numbers of a part depend on the seed and the batch. Therefore the ranks share the samples that are left
    by whole batches, and exchange the results after each part.

    Args:
        attack: The attack, as the package built it.
        x: Images in single precision.
        y: Labels.
        batch_size: Number of images in a batch.
        ranks: The ranks that share the batches.
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
    # The package compares Square with the parts before it, but each of its runs above had one part only.
    checks.check_square_sr(accuracies, logger=attack.logger)
    return images, classes


def _accuracy(classes: Tensor, y: Tensor) -> float:
    return (classes == y).double().mean().item()
