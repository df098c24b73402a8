"""The optimiser of a run and its learning rate; which fields go together."""

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

#: Fields that belong to one choice of another field, with what they are there by default.
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
    """Optimiser and its schedule.

    Attributes:
        name: A class of torch.optim in lower case, such as adamw (see `adv-train list optimizers`).
        lr: Largest learning rate of the schedule.
        schedule: Shape of the learning rate over the steps: triangular from 0 to a peak and back to 0; one-cycle as
            torch's OneCycleLR, from lr/25 to lr/250000; multistep down at each milestone; cosine down to 0; constant.
        peak_at: Of triangular and one-cycle: share of the steps before the highest rate; 0.5 and 0.3 by default.
        milestones: Of multistep: epochs after which the rate falls, as 70,85.
        decay: Of multistep: factor at each milestone; 0.1 by default.
        clip: Scale the gradient down where its norm over all parameters is above this; none leaves it.
        weight_decay: On every parameter.
        momentum: Of sgd; 0.9 by default.
        momentum_cycling: Of sgd: lower the momentum by 0.1 where the learning rate is highest, and raise it again.
        options: Further options of the optimizer, as 'betas=[0.9, 0.95], eps=1e-6' (see `adv-train list optimizers`).
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
            raise values.refused("momentum", "at least 0.1 where `momentum_cycling` takes 0.1 off it", self.momentum)

    def create(self, parameters: Iterable[Tensor], *, captured: bool = False) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters.

        Args:
            parameters: What it moves.
            captured: As in `adv_train.optimizers.create`.

        Raises:
            UserError: When torch refuses an option.
        """
        own = {} if self.momentum is None else {"momentum": self.momentum}
        chosen: dict[str, Any] = {**own, **(self.options or {})}
        return optimizers.create(
            self.name, parameters, lr=self.lr, weight_decay=self.weight_decay, captured=captured, **chosen
        )
