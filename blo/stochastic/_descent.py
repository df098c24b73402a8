"""Steps on the lower variables z, q and y: plain gradient steps, or steps of a torch optimiser."""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from blo._scheduled import OptimizerFactory, Scheduled, SchedulerFactory
from blo.errors import StructureError
from blo.stochastic._schedule import Schedule, at, require

_KEY = "optimizers"


class Settings(Protocol):
    """The fields of an algorithm for steps on the lower variables."""

    @property
    def lower_step(self) -> Schedule | None:
        """Step size of plain steps."""

    @property
    def lower_optimizer(self) -> OptimizerFactory | None:
        """Creates the optimiser of a lower variable; None for plain steps."""

    @property
    def lower_scheduler(self) -> SchedulerFactory | None:
        """Creates the learning-rate schedule of such an optimiser."""


@final
class Descent:
    """Steps on the lower variables within one step of an algorithm. Each variable has its own optimiser, if any.

    Args:
        settings: the algorithm.
        k: number of steps made so far.
        memory: the memory of the state, with the states of the optimisers; not modified.

    Raises:
        StructureError: if `memory` holds states of optimisers but the algorithm has no optimiser.
        ValueError: if the step size at `k` is out of range.
    """

    def __init__(self, settings: Settings, k: int, memory: dict[str, Any]) -> None:
        self._settings = settings
        self._saved: dict[str, Any] = memory.get(_KEY, {})
        self._made: dict[str, tuple[Tensor, Scheduled]] = {}
        if settings.lower_optimizer is None and self._saved:
            raise StructureError(
                "`state` holds the state of a `lower_optimizer`, but the algorithm has none. Pass the optimiser of the "
                "earlier steps, or remove its state: `del state['memory']['optimizers']`."
            )
        step = settings.lower_step
        self._step = None if settings.lower_optimizer is not None or step is None else at(step, k, "lower_step")

    def move(self, name: str, point: Tensor, direction: Tensor, over: float = 1.0) -> Tensor:
        """Return the variable after one step.

        Args:
            name: the name of the variable.
            point: its value, shape `(n,)`.
            direction: the gradient, or an estimate of it, shape `(n,)`.
            over: a number by which the direction is divided.

        Raises:
            StructureError: if the optimiser needs more than one gradient, or does not optimise this variable.
        """
        if self._step is not None:
            return point - self._step / over * direction
        # The optimiser writes to its parameter in place: copy the point into it, and copy the result out of it.
        with torch.no_grad():
            if name not in self._made:
                self._made[name] = self._make(name, point)
            held, maker = self._made[name]
            held.copy_(point)
            # Divided, so that plain SGD makes the same step as the branch above.
            held.grad = direction / over
        try:
            maker.optimizer.step()
        except TypeError as error:
            if "closure" not in str(error):
                raise
            raise StructureError(
                f"`lower_optimizer` must step from one gradient, but {type(maker.optimizer).__name__} evaluates the "
                "objective several times per step, and a direction from one batch cannot serve for that. Use Adam, for "
                "example."
            ) from error
        return held.detach().clone()

    def memory(self) -> dict[str, Any]:
        """Advance the schedules, and return the states of optimisers and schedules; an empty dict for plain steps."""
        # Here and not in `move`: inner loops move a variable several times within one step of the algorithm.
        for _, maker in self._made.values():
            maker.advance()
        # Not copied: these optimisers make no further step, and the next ones load a copy.
        kept = {name: maker.state_dict() for name, (_, maker) in self._made.items()}
        return {_KEY: kept} if kept else {}

    def _make(self, name: str, point: Tensor) -> tuple[Tensor, Scheduled]:
        make, schedule = self._settings.lower_optimizer, self._settings.lower_scheduler
        assert make is not None
        # Torch's optimisers take leaves only.
        held = torch.nn.Parameter(point.detach().clone())
        maker = Scheduled([held], make, schedule, self._saved.get(name), prefix="lower_")
        if maker.plateau:
            raise StructureError(
                "`lower_scheduler` must depend on the number of steps only, but ReduceLROnPlateau needs a value, and "
                "these algorithms compute none."
            )
        return held, maker


def require_descent(settings: Settings, *, series: bool = False) -> None:
    """Check the fields for steps on the lower variables.

    Args:
        settings: the algorithm.
        series: whether the algorithm needs `lower_step` for a Neumann series as well.

    Raises:
        ValueError: if `lower_step` is missing, unused or not positive, or there is a schedule without an optimiser.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.
    """
    step, optimizer, scheduler = settings.lower_step, settings.lower_optimizer, settings.lower_scheduler
    for name, given in (("lower_optimizer", optimizer), ("lower_scheduler", scheduler)):
        if given is not None and (isinstance(given, Optimizer) or not callable(given)):
            example = {
                "lower_optimizer": "lambda parameters: torch.optim.Adam(parameters, lr=0.1)",
                "lower_scheduler": "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)",
            }[name]
            raise StructureError(
                f"`{name}` must be a function that creates one, but is of type {type(given).__name__}. For example: "
                f"{name}={example}."
            )
    if optimizer is None and scheduler is not None:
        raise ValueError("`lower_scheduler` needs a `lower_optimizer`. For plain steps make `lower_step` a schedule.")
    if step is None and (optimizer is None or series):
        raise ValueError("`lower_step` must be given, but is None." + ("" if series else " Or pass `lower_optimizer`."))
    if step is not None and optimizer is not None and not series:
        raise ValueError(
            "`lower_step` has no effect together with `lower_optimizer`, which has its own step sizes. Leave it out; "
            "`lower_scheduler` can decrease them."
        )
    if step is not None:
        require(step, "lower_step")
