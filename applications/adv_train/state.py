"""The state of training, as one object to save and to restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adv_train.errors import UserError
from adv_train.methods import State
from adv_train.spread import Spread


@dataclass
class TrainingState:
    """Everything that changes from step to step and does not follow from the configuration and the step.

    It has no random state, learning rate or momentum: random numbers depend on the seed and the epoch alone, and the
    rates on the step.

    Attributes:
        model: The model, on the device that trains.
        optimizer: Optimiser of its parameters.
        memory: Memory of the method.
        average: A copy of the model that holds the averaged weights; None in a run without averaging.
        spread: How the memory is distributed over the ranks.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    memory: State
    average: nn.Module | None = None
    spread: Spread = field(default_factory=lambda: Spread("run", 0))

    @property
    def judged(self) -> nn.Module:
        """The model that is validated, selected and evaluated: the average, or the model if there is no average."""
        return self.model if self.average is None else self.average

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, which share its storage. All ranks must call it together."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.spread.whole(self.memory),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            UserError: If it belongs to another model, or to a method with another memory.
        """
        try:
            self.model.load_state_dict(found["model"])
            self.optimizer.load_state_dict(dict(found["optimizer"]))
            if self.average is not None:
                self.average.load_state_dict(found["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError("the weights belong to another model") from error
        memory = self.spread.own(found["memory"])
        if _kinds(memory) != _kinds(self.memory):
            raise UserError("the memory of the method belongs to another method or data set")
        self.memory = {name: value.to(self.memory[name].device) for name, value in memory.items()}

    def is_finite(self) -> bool:
        """Return whether every weight and every statistic of the model is finite."""
        return bool(torch.stack([value.isfinite().all() for value in self.model.state_dict().values()]).all())


def _kinds(memory: State) -> dict[str, object]:
    return {name: (value.shape, value.dtype) for name, value in memory.items()}
