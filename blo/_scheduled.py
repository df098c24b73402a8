"""A torch optimiser and the schedule of its learning rate, made by a user's functions and saved together."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from blo.errors import StructureError

#: Makes an optimiser of a list of tensors: `lambda parameters: torch.optim.Adam(parameters, lr=0.1)`.
OptimizerFactory: TypeAlias = Callable[[list[Tensor]], Optimizer]
#: Makes the schedule of an optimiser: `lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)`.
SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]


@final
class Scheduled:
    """An optimiser with its schedule, if any.

    Args:
        parameters: the tensors to optimise.
        optimizer: creates the optimiser.
        scheduler: creates the schedule; None for constant learning rates.
        saved: the `state_dict()` of an earlier run, to be continued; not modified. If it has no schedule, a new one
            begins at its learning rates.
        prefix: put before the names `optimizer` and `scheduler` in errors.

    Raises:
        StructureError: if a function does not return an optimiser or a schedule, or if `saved` belongs to another one.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        saved: dict[str, Any] | None = None,
        *,
        prefix: str = "",
    ) -> None:
        self.optimizer = _optimizer(optimizer, parameters, f"{prefix}optimizer")
        self.scheduler: LRScheduler | None = None
        before = None if saved is None else saved["scheduler"]
        if before is not None:
            # A new schedule writes its first learning rate into the optimiser: it comes before those that are loaded.
            self.scheduler = _continued(scheduler, self.optimizer, before, f"{prefix}scheduler")
        if saved is not None:
            _load(self.optimizer, saved["optimizer"], f"{prefix}optimizer")
        if before is None and scheduler is not None:
            self.scheduler = _scheduler(scheduler, self.optimizer, f"{prefix}scheduler")

    @property
    def plateau(self) -> bool:
        """Whether the schedule depends on the value of the objective."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def advance(self, value: Tensor | None = None) -> None:
        """Step the schedule, if any; `value` is that of the objective, for a schedule that depends on it."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            assert value is not None
            self.scheduler.step(float(value))
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors from which it can be continued; copy them if another step follows."""
        kept = self.scheduler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if kept is None else {"name": type(kept).__name__, "state": kept.state_dict()},
        }


def _optimizer(make: OptimizerFactory, parameters: list[Tensor], name: str) -> Optimizer:
    if isinstance(make, Optimizer):
        raise StructureError(f"`{name}` must be a function that makes an optimiser, but is one already.")
    made = make(parameters) if callable(make) else make
    example = f"For example: {name}=lambda parameters: torch.optim.Adam(parameters, lr=0.1)."
    if not isinstance(made, Optimizer):
        raise StructureError(
            f"`{name}` must make a torch optimiser from a list of tensors, but gave {type(made).__name__}. {example}"
        )
    if not any(held is given for group in made.param_groups for held in group["params"] for given in parameters):
        raise StructureError(
            f"`{name}` must make an optimiser of the tensors it is given, but made one of others. {example}"
        )
    return made


def _scheduler(make: SchedulerFactory, optimizer: Optimizer, name: str) -> LRScheduler:
    example = f"For example: {name}=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)."
    if isinstance(make, LRScheduler):
        raise StructureError(
            f"`{name}` must make a schedule of the optimiser it is given, but is one already. {example}"
        )
    made = make(optimizer) if callable(make) else make
    if not isinstance(made, LRScheduler):
        raise StructureError(
            f"`{name}` must make a torch.optim.lr_scheduler of an optimiser, but gave {type(made).__name__}. {example}"
        )
    if getattr(made, "optimizer", optimizer) is not optimizer:
        raise StructureError(f"`{name}` must make a schedule of the optimiser it is given, but made one of another.")
    return made


def _continued(make: SchedulerFactory | None, optimizer: Optimizer, saved: dict[str, Any], name: str) -> LRScheduler:
    if make is None:
        raise StructureError(
            f"`state` holds a {saved['name']}, but there is no `{name}` to continue it. "
            f"Pass the `{name}` of the earlier call."
        )
    made = _scheduler(make, optimizer, name)
    if type(made).__name__ != saved["name"]:
        raise StructureError(
            f"`{name}` must make the {saved['name']} that `state` holds, but made a {type(made).__name__}."
        )
    made.load_state_dict(deepcopy(saved["state"]))
    return made


def _load(optimizer: Optimizer, saved: dict[str, Any], name: str) -> None:
    wanted = [set(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(deepcopy(saved))  # whose tensors it would update in place
        # `load_state_dict` accepts the settings of another class of optimiser, and this class then lacks its own.
        missing = [
            keys - set(group)
            for keys, group in zip(wanted, optimizer.param_groups, strict=True)
            if not keys <= set(group)
        ]
    except (KeyError, ValueError) as error:
        raise StructureError(f"`state` is not of the optimiser that `{name}` makes: {error}.") from error
    if missing:
        raise StructureError(
            f"`state` is not of the {type(optimizer).__name__} that `{name}` makes: its settings have no "
            f"{sorted(missing[0])}. Pass the `{name}` of the earlier call."
        )
