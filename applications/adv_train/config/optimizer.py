"""The optimiser of a run, the schedule of its learning rate, and which of their options go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import torch
from torch import Tensor

from adv_train import optimizers, values
from adv_train.errors import UserError
from adv_train.schedules import DECAY, PEAKS
from adv_train.values import Checked, Count, NotNegative, Positive, Range

#: Fields that only some values of another field (the first entry) use, and their default for each such value.
BELONGS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "momentum": ("name", {"sgd": 0.9}),
    "momentum_cycling": ("name", {"sgd": False}),
    "peak_at": ("schedule", PEAKS),
    "milestones": ("schedule", {"multistep": ()}),
    "decay": ("schedule", {"multistep": DECAY}),
}
_SAID: Final = {"name": "optimizer", "schedule": "schedule"}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """The optimiser and its schedule.

    Attributes:
        name: A class of torch.optim in lower case, such as adamw (see `adv-train list optimizers`).
        lr: Largest learning rate of the schedule.
        schedule: Learning rate over the steps: triangular from 0 to lr and back to 0; one-cycle as in torch's
            OneCycleLR, from lr/25 to lr to lr/250000; multistep falls at each milestone; cosine falls to 0; constant.
        peak_at: For triangular and one-cycle: share of the steps before the largest rate; 0.5 and 0.3 by default.
        milestones: For multistep: epochs after which the rate falls, such as 70,85.
        decay: For multistep: factor that multiplies the rate at each milestone; 0.1 by default.
        clip: Largest norm of the gradient over all parameters; a larger gradient is scaled down. None: no limit.
        weight_decay: Weight decay of every parameter.
        momentum: For sgd: momentum; 0.9 by default.
        momentum_cycling: For sgd: lower the momentum, by 0.1 when the learning rate is largest, and raise it again.
        options: Further options of the optimiser, such as 'betas=[0.9, 0.95], eps=1e-6' (see `adv-train list
            optimizers`).
    """

    name: str = "sgd"
    lr: NotNegative
    schedule: Literal["triangular", "one-cycle", "multistep", "cosine", "constant"] = "triangular"
    peak_at: Annotated[float, Range(0, 0.99)] | None = None
    milestones: tuple[Count, ...] = ()
    decay: Annotated[float, Range(0, 1)] | None = None
    clip: Positive | None = None
    weight_decay: NotNegative = 5e-4
    momentum: Annotated[float, Range(0, 0.9999)] | None = None
    momentum_cycling: bool = False
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", optimizers.check(self.name, self.weight_decay, self.options or {}))
        for name, (choice, defaults) in BELONGS.items():
            value, chosen = getattr(self, name), getattr(self, choice)
            if value is None:
                object.__setattr__(self, name, defaults.get(chosen))
            elif chosen not in defaults and value is not False and value != ():
                raise UserError(f"`{name}` belongs to {' and '.join(defaults)}, but the {_SAID[choice]} is {chosen}.")
        if self.schedule == "multistep" and not self.milestones:
            raise values.refused("milestones", "epochs such as 70,85 for the schedule multistep", self.milestones)
        if self.momentum_cycling and self.momentum is not None and self.momentum < 0.1:
            raise values.refused("momentum", "at least 0.1, because `momentum_cycling` lowers it by 0.1", self.momentum)

    def create(self, parameters: Iterable[Tensor], *, captured: bool = False) -> torch.optim.Optimizer:
        """Return the optimiser of some parameters.

        Args:
            parameters: The parameters that it updates.
            captured: As in `adv_train.optimizers.create`.

        Raises:
            UserError: If torch rejects an option.
        """
        own = {} if self.momentum is None else {"momentum": self.momentum}
        chosen: dict[str, Any] = {**own, **(self.options or {})}
        return optimizers.create(
            self.name, parameters, lr=self.lr, weight_decay=self.weight_decay, captured=captured, **chosen
        )
