"""Weights of loss terms that change during training, computed on the device from the position in the run."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from adv_train.methods.moment import Moment

#: A weight: a tensor of shape `()` in a run, a number outside a run.
Coefficient: TypeAlias = Tensor | float


def rising(final: float, moment: Moment | None) -> Coefficient:
    """Return a weight that rises linearly from 0 to `final` over the steps of the run; outside a run, `final`."""
    return final if moment is None else final * (moment.step / moment.steps)


def stepped(first: float, last: float, after: float, moment: Moment | None) -> Coefficient:
    """Return `first` until a share `after` of the run's steps is done, and `last` after that and outside a run."""
    return last if moment is None else torch.where(moment.step >= after * moment.steps, last, first)


def on_odd_steps(weight: Coefficient, moment: Moment | None) -> Coefficient:
    """Return the weight on steps with an odd index and zero on the others; outside a run, the weight."""
    return weight if moment is None else weight * (moment.step % 2)
