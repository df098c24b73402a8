"""Everything that training changes, as one thing to save and to restore."""

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
    """What changes from step to step. Random numbers are not among it: they follow from the seed and the epoch alone,
    and so do the learning rate and the momentum.

    Attributes:
        model: On the device that trains.
        optimizer: Of its parameters.
        memory: What the method remembers.
        average: A copy of the model that holds the averaged weights; None in a run without averaging.
        spread: How the memory lies on ranks.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    memory: State
    average: nn.Module | None = None
    spread: Spread = field(default_factory=lambda: Spread("run", 0))

    @property
    def judged(self) -> nn.Module:
        """The model that is validated, selected and judged: the average, where there is one."""
        return self.model if self.average is None else self.average

    def state_dict(self) -> dict[str, Any]:
        """Give all of it as tensors and plain values; they share memory with the state. All ranks call it together."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.spread.whole(self.memory),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            UserError: When it is that of another model, or of a method that remembers other things or elsewhere.
        """
        try:
            self.model.load_state_dict(found["model"])
            self.optimizer.load_state_dict(dict(found["optimizer"]))
            if self.average is not None:
                self.average.load_state_dict(found["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError("the weights are those of another model") from error
        memory = self.spread.own(found["memory"])
        if _kinds(memory) != _kinds(self.memory):
            raise UserError("what the method remembers is that of another method or data set")
        self.memory = {name: value.to(self.memory[name].device) for name, value in memory.items()}

    def is_finite(self) -> bool:
        """Whether every weight and every statistic of the model is a finite number."""
        return bool(torch.stack([value.isfinite().all() for value in self.model.state_dict().values()]).all())


def _kinds(memory: State) -> dict[str, object]:
    return {name: (value.shape, value.dtype) for name, value in memory.items()}
