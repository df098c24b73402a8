"""Weights that change during training, as functions of the moment; nothing waits for the device."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from adv_train.methods.moment import Moment

#: A weight: a tensor of shape `()` in a run, a number outside.
Coefficient: TypeAlias = Tensor | float


def rising(final: float, moment: Moment | None) -> Coefficient:
    """Return a weight that rises linearly over the steps of the run from 0; `final` outside a run."""
    return final if moment is None else final * (moment.step / moment.steps)


def stepped(first: float, last: float, after: float, moment: Moment | None) -> Coefficient:
    """Return `first`, and `last` from a share `after` of the steps of the run on and outside a run."""
    return last if moment is None else torch.where(moment.step >= after * moment.steps, last, first)


def on_odd_steps(weight: Coefficient, moment: Moment | None) -> Coefficient:
    """Return a weight on steps of odd number and outside a run, and zero on the others."""
    return weight if moment is None else weight * (moment.step % 2)
