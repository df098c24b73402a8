"""What every stochastic algorithm shares: a state that can be saved, and steps that turn one into the next."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, final

from torch import Tensor

from blo import tree
from blo._arguments import require_function
from blo._checkpoints import sound_checkpoints
from blo._failures import Checks
from blo._layout import Layout
from blo._types import OnFailure, Tree
from blo.errors import StructureError
from blo.stochastic._batches import Stream
from blo.stochastic._oracle import Oracle, layouts

#: `objective(theta, z, batch)` returns a scalar, an average over the batch.
Objective: TypeAlias = Callable[[Tree, Tree, Any], Tensor]
#: What an algorithm keeps besides theta and z: flat tensors, tuples and lists of them, and states of optimisers.
Memory: TypeAlias = dict[str, Any]
#: A dict with theta, z, the number of steps made, and what else the algorithm keeps.
State: TypeAlias = dict[str, Any]


class Algorithm(abc.ABC):
    """An iteration on theta and z together, for a lower problem without constraints.

    A state is a plain dict, for `torch.save` and for `torch.load(..., weights_only=True)`:
    `{"algorithm": name, "step": steps made, "taken": batches taken, "theta": tree, "z": tree, "memory": {...}}`, where
    `"taken"` counts those of the upper and of the lower objective. It is never modified, and
    holds no source of randomness: continued with the same batches, a loaded state gives the same numbers bit for bit.
    """

    @final
    def init(self, theta: Tree, z0: Tree) -> State:
        """Return the state before the first step; copies, so that the arguments may change afterwards.

        Args:
            theta: upper variable, a tree of floating point tensors of one dtype on one device.
            z0: start of the lower variable, the same.

        Raises:
            StructureError: if they are not.
        """
        theta_layout, z_layout = layouts(theta, z0)
        flat_theta, flat_z = theta_layout.ravel(theta).detach().clone(), z_layout.ravel(z0).detach().clone()
        return {
            "algorithm": type(self).__name__,
            "step": 0,
            "taken": (0, 0),
            "theta": theta_layout.unravel(flat_theta),
            "z": z_layout.unravel(flat_z),
            "memory": self._start(flat_theta, flat_z),
        }

    @final
    @sound_checkpoints
    def step(
        self,
        state: State,
        upper: Objective,
        lower: Objective,
        upper_batches: Iterable[Any] | None = None,
        lower_batches: Iterable[Any] | None = None,
        *,
        on_failure: OnFailure | None = None,
    ) -> State:
        """Return the next state.

        Args:
            state: from `init` or `step` of an algorithm of this class.
            upper: `upper(theta, z, batch)` returns a scalar, the mean over the batch.
            lower: `lower(theta, z, batch)`, the same; strongly convex in z.
            upper_batches: an iterator, of which as many batches are taken as the step needs, or a list with enough of
                them. When None, `upper` is called with None in place of a batch.
            lower_batches: the same for `lower`. Draws must be independent for the directions to be unbiased.
            on_failure: `"raise"`, `"warn"` or `"ignore"` when theta does not enter `lower`; a warning by default.
                Numbers are not looked at, so that a step never waits for the device; `run` does.

        Raises:
            StructureError: if state, objectives or batches do not fit, or the batches run out.
            ConvergenceError: if theta does not enter `lower` and `on_failure` is `"raise"`.
            ValueError: if `on_failure` or a value of a schedule is out of range.
        """
        self._check(state, upper, lower)
        theta_layout, z_layout = layouts(state["theta"], state["z"])
        self._fit(state, theta_layout, z_layout)
        streams = Stream(upper_batches, "upper_batches"), Stream(lower_batches, "lower_batches")
        theta, z, memory = self._advance(
            state["step"],
            theta_layout.ravel(state["theta"]),
            z_layout.ravel(state["z"]),
            state["memory"],
            Oracle((upper, lower), streams, theta_layout, z_layout, Checks(on_failure)),
        )
        return {
            "algorithm": state["algorithm"],
            "step": state["step"] + 1,
            "taken": tuple(
                before + stream.count for before, stream in zip(state.get("taken", (0, 0)), streams, strict=True)
            ),
            "theta": theta_layout.unravel(theta),
            "z": z_layout.unravel(z),
            "memory": memory,
        }

    @abc.abstractmethod
    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        """Return the memory before the first step, given theta of shape `(p,)` and z of shape `(n,)`."""

    @abc.abstractmethod
    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        """Return the next theta, z and memory; `k` is the number of steps made so far."""

    def _fit(self, state: State, theta_layout: Layout, z_layout: Layout) -> None:
        """Refuse a theta or a z that is not the one which the memory belongs to."""
        fresh = self._start(theta_layout.ravel(state["theta"]), z_layout.ravel(state["z"]))
        for name, wanted in fresh.items():
            if isinstance(wanted, list):  # rows: there are as many as batches, which the algorithm looks at
                continue
            pairs = zip(tree.leaves(wanted), tree.leaves(state["memory"].get(name)), strict=False)
            if name not in state["memory"] or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
                raise StructureError(
                    f"`state` must hold the theta and z that its memory belongs to, but its {name!r} is of another "
                    "shape or dtype. Continue from a state as `step` returned it, or begin anew with `init`."
                )

    def _check(self, state: State, upper: Objective, lower: Objective) -> None:
        name = type(self).__name__
        found = state.get("algorithm") if isinstance(state, dict) else type(state).__name__
        if found != name:
            raise StructureError(f"`state` must come from {name}.init or {name}.step, but is of {found}.")
        missing = [key for key in ("step", "theta", "z", "memory") if key not in state]
        if missing:
            raise StructureError(f"`state` must come from {name}.init or {name}.step, but has no {missing}.")
        for objective, place in ((upper, "upper"), (lower, "lower")):
            if not callable(objective):
                raise StructureError(
                    f"`{place}` must be a function of theta, z and a batch, but is {type(objective).__name__}. "
                    "The stochastic algorithms solve lower problems without constraints or penalties; "
                    "for a `LowerProblem` use `argmin`."
                )
            require_function(objective, place, "theta", "z", "a batch")
