"""The two objectives of adversarial training, on one batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Losses:
    """The attack's and the trainer's objective as functions of the parameters and the perturbation.

    Attributes:
        logits: the model's output when `train` was last called, detached.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> None:
        self.x, self.y, self.generator = x, y, generator
        self._model = model
        self.logits = x.new_empty(0)

    def forward(self, params: dict[str, Tensor], delta: Tensor) -> Tensor:
        """Return the model's output at x + delta with the given parameters, shape `(batch, classes)`."""
        logits: Tensor = torch.func.functional_call(self._model, params, (self.x + delta,))
        return logits

    def attack(self, params: dict[str, Tensor], delta: Tensor) -> Tensor:
        """Return minus the cross-entropy of each sample, shape `(batch,)`: what the attack minimises."""
        return -F.cross_entropy(self.forward(params, delta), self.y, reduction="none")

    def train(self, params: dict[str, Tensor], delta: Tensor) -> Tensor:
        """Return the mean cross-entropy, shape `()`: what training minimises."""
        logits = self.forward(params, delta)
        self.logits = logits.detach()
        return F.cross_entropy(logits, self.y)
