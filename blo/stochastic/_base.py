"""The interface of stochastic algorithms: a state that can be saved, and a step from one state to the next."""

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

#: `objective(theta, z, batch)` returns a scalar, the mean over the batch.
Objective: TypeAlias = Callable[[Tree, Tree, Any], Tensor]
#: The state of an algorithm besides theta and z: flat tensors, tuples and lists of tensors, and states of optimisers.
Memory: TypeAlias = dict[str, Any]
#: A dict with theta, z, the number of steps made, and the memory of the algorithm.
State: TypeAlias = dict[str, Any]


class Algorithm(abc.ABC):
    """A joint iteration on theta and z, for a lower problem without constraints.

    A state is a plain dict that `torch.save` and `torch.load(..., weights_only=True)` accept:
    `{"algorithm": name, "step": steps made, "taken": batches taken, "theta": tree, "z": tree, "memory": {...}}`, where
    `"taken"` counts the batches of the upper and of the lower objective. A step does not modify its state. A state
    contains no random generator: continued with the same batches, a loaded state gives bitwise equal numbers.
    """

    @final
    def init(self, theta: Tree, z0: Tree) -> State:
        """Return the state before the first step. It holds copies, so the arguments may change afterwards.

        Args:
            theta: upper variable, a tree of floating point tensors of one dtype on one device.
            z0: start of the lower variable, also such a tree.

        Raises:
            StructureError: if one of them is not such a tree.
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
            lower: `lower(theta, z, batch)` returns a scalar, the mean over the batch; strongly convex in z.
            upper_batches: an iterator, from which the step takes as many batches as it needs, or a list with enough
                batches. If None, `upper` is called with None instead of a batch.
            lower_batches: the same for `lower`. The directions are unbiased only if the draws are independent.
            on_failure: `"raise"`, `"warn"` or `"ignore"` if `lower` does not depend on theta; by default a warning.
                A step does not test for NaN, because that would wait for the device; `run` does.

        Raises:
            StructureError: if state, objectives or batches do not fit, or there are too few batches.
            ConvergenceError: if `lower` does not depend on theta and `on_failure` is `"raise"`.
            ValueError: if `on_failure` or a value of a schedule is out of range.

        Warns:
            ConstantWarning: if `lower` does not depend on theta.
            ConvergenceWarning: at the first step of `F2SA`, if theta moves too fast for z.
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
            # States of earlier versions do not count batches.
            "taken": tuple(
                before + stream.count for before, stream in zip(state.get("taken", (0, 0)), streams, strict=True)
            ),
            "theta": theta_layout.unravel(theta),
            "z": z_layout.unravel(z),
            "memory": memory,
        }

    @abc.abstractmethod
    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        """Return the memory before the first step, for theta of shape `(p,)` and z of shape `(n,)`."""

    @abc.abstractmethod
    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        """Return the next theta, z and memory; `k` is the number of steps made so far."""

    def _fit(self, state: State, theta_layout: Layout, z_layout: Layout) -> None:
        """Check that theta and z have the shapes and dtypes of the memory.

        Raises:
            StructureError: if they do not.
        """
        # A user may have replaced theta or z in the state; a wrong shape could broadcast without an error.
        fresh = self._start(theta_layout.ravel(state["theta"]), z_layout.ravel(state["z"]))
        for name, wanted in fresh.items():
            if isinstance(wanted, list):  # a row for each batch: the algorithm itself checks their number
                continue
            pairs = zip(tree.leaves(wanted), tree.leaves(state["memory"].get(name)), strict=False)
            if name not in state["memory"] or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
                raise StructureError(
                    f"`state` must hold theta and z with the shapes and dtypes of its memory, but {name!r} differs. "
                    "Continue from a state as `step` returned it, or start again with `init`."
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
