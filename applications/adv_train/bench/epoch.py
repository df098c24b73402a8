"""The seconds of an epoch, estimated from the times of a gradient, an update of the weights and a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Epoch:
    """The epoch to estimate.

    Attributes:
        images: Number of training images.
        validation: Forward passes of single images in one validation; None leaves the validation out.
    """

    images: int = 50_000
    validation: float | None = None

    def seconds(self, step: float, batch_size: int, replays: int) -> float:
        """Return the seconds of an epoch without validation.

        Args:
            step: Seconds of a step: the gradient and the update of the weights.
            batch_size: Number of images in a batch; a smaller last batch counts in proportion.
            replays: Number of steps on one batch.
        """
        return self.images / batch_size * replays * step


def around_a_gradient(model: nn.Module, x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the rest of an epoch, for the clock: one update of the weights, and one forward pass as in validation.

    The update is that of SGD with momentum and weight decay. Both use a copy of the model, which they do not change:
    the learning rate is 0, and the copy is in eval mode.

    Args:
        model: The model.
        x: Images of a batch.
    """
    other = copy.deepcopy(model).eval()
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4)

    def forward() -> Tensor:
        with torch.no_grad():
            output: Tensor = other(x)
        return output

    return optimizer.step, forward
