"""Averages of a model's weights over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def share_of_latest(step: int, *, ema: float | None, first: int = 0) -> float:
    """Return the share that the weights after a step have in the average up to that step.

    With a decay it is 1 - min(decay, (1 + step) / (10 + step)): an exponential moving average whose decay warms up, so
    that it soon forgets the first weights (the rule of TensorFlow's ExponentialMovingAverage with `num_updates`, and of
    most public code of adversarial training). Without a decay it is the share in the mean of all weights since the step
    `first` (stochastic weight averaging; Izmailov et al., UAI 2018), and 1 before that step.

    Args:
        step: Index of the step, from 0.
        ema: The decay; None for the mean.
        first: First step of the mean.
    """
    if ema is None:
        return 1 / (1 + max(0, step - first))
    return max(1 - ema, 9 / (10 + step))  # 1 - (1 + step) / (10 + step) = 9 / (10 + step)


def discarded(history: Iterable[Mapping[str, Any]], first: int) -> int:
    """Count the epochs of the mean whose weights it lost because the run was rolled back.

    A rollback discards the epoch itself, and the epochs between it and the one from which training continued.

    Args:
        history: ``epoch``, and ``rolled_back_to`` where the run was rolled back, of all finished epochs, in order.
        first: Number of epochs before the mean begins.
    """
    begun, held = 0, [0]  # epochs of the mean so far, and how many it holds after each epoch
    for record in history:
        counts = int(record["epoch"] > first)
        begun += counts
        held.append(held[record["rolled_back_to"]] if "rolled_back_to" in record else held[-1] + counts)
    return begun - held[-1]


@torch.no_grad()
def move(average: nn.Module, latest: nn.Module, share: float | Tensor) -> None:
    """Move an average towards the latest weights by `share`, without waiting for the device.

    The running statistics of BatchNorm are averaged like the weights. Integers, such as the count of batches, are
    copied. A tensor that two layers share moves once.

    Args:
        average: A copy of the model; changed in place.
        latest: The model.
        share: Share of the latest weights in [0, 1], a number or a tensor of shape `()`; 1 copies the latest weights.
    """
    targets: Mapping[str, Tensor] = average.state_dict()
    # With `keep_vars` a shared tensor is one object under all its names.
    distinct = {id(value): (name, value) for name, value in latest.state_dict(keep_vars=True).items()}
    found = {name: value.detach() for name, value in distinct.values()}
    moving = [name for name, value in found.items() if value.is_floating_point()]
    weights: Any = [share] * len(moving) if isinstance(share, Tensor) else share
    torch._foreach_lerp_([targets[name] for name in moving], [found[name] for name in moving], weights)
    for name in found.keys() - set(moving):
        targets[name].copy_(found[name])
