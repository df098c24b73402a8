"""Lower problems for attacks whose direction, or whose result, the method has computed already."""

from __future__ import annotations

from torch import Tensor

import blo
from adv_train.methods.losses import Losses


def along(attack: blo.LowerProblem, direction: Tensor) -> blo.LowerProblem:
    """Return the lower problem of an attack that maximises `<direction, delta>` for each sample.

    Args:
        attack: The attack whose perturbations are allowed.
        direction: A constant of the images' shape, such as a gradient that the method has changed.
    """
    return blo.LowerProblem(lambda _, delta: -(direction * delta).flatten(1).sum(1), attack.constraint, batched=True)


def train_at(losses: Losses, params: dict[str, Tensor], delta: Tensor) -> blo.Hypergradient:
    """Return the training objective and its gradient at a perturbation that the caller has found, a constant."""
    return blo.value_and_hypergrad(
        losses.train,
        blo.LowerProblem(losses.attack, batched=True),
        params,
        delta,
        solver=blo.Given(),
        gradient=blo.Zero(),
        on_failure="ignore",
    )
