"""The loop around the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from blo import tree
from blo._entrance import with_numbers
from blo._failures import Checks
from blo._settings import require_count
from blo._types import OnFailure
from blo.stochastic._base import Algorithm, Objective, State
from blo.stochastic._batches import endless, fixed
from blo.stochastic._watch import Watch

#: Steps between two looks at whether theta is finite: each makes the host wait for the device.
PERIOD = 8
_REMEDY = (
    "Where the run has diverged, lower `lower_step` or `upper_step`. Where a batch is to blame, look for NaN and for "
    "batches without examples, of which there is no mean."
)


@with_numbers
def run(
    algorithm: Algorithm,
    state: State,
    upper: Objective,
    lower: Objective,
    *,
    steps: int,
    upper_batches: Iterable[Any] | None = None,
    lower_batches: Iterable[Any] | None = None,
    callback: Callable[[State], object] | None = None,
    on_failure: OnFailure | None = None,
) -> State:
    """Make a number of steps and return the last state; its `"theta"` and `"z"` are the result.

    Args:
        algorithm: for example `SOBA(lower_step=0.1, upper_step=0.01)`.
        state: from `algorithm.init(theta, z0)`, or the result of an earlier call, which is continued.
        upper: `upper(theta, z, batch)` returns a scalar.
        lower: `lower(theta, z, batch)` returns a scalar.
        steps: how many more steps to make.
        upper_batches: an iterator, read on from where it stands, or an iterable such as a list or a `DataLoader`, begun
            anew whenever it ends; one with a length is read on from where an earlier call on this state has left it
            (by skipping batches: for many short calls pass an iterator). When None, `upper` is called with None in
            place of a batch.
        lower_batches: the same for `lower`.
        callback: called with each new state, which holds the number of steps made under `"step"`. Returning true
            ends the run.
        on_failure: `"raise"`, `"warn"` or `"ignore"` when theta or z is not finite, which is looked at every 8 steps,
            theta does not enter `lower`, or the run does not settle: its steps become longer and longer; or, without
            batches, or with one batch of each, theta goes back and forth without coming to rest, or theta or z goes
            straight on at the pace at which it began. By default the first is an error and the others are warnings.

    Raises:
        StructureError: as `algorithm.step` does.
        NonFiniteError: if theta or z is not finite.
        ConvergenceError: as `algorithm.step` does.
        ValueError: if `steps` is below 1; and as `algorithm.step` does.
    """
    require_count(steps, "steps")
    checks = Checks(on_failure)
    watch = None if checks.off else Watch(steps, noisy=not (fixed(upper_batches) and fixed(lower_batches)))
    above, below = state.get("taken", (0, 0)) if isinstance(state, dict) else (0, 0)
    upper_batches, lower_batches = endless(upper_batches, above), endless(lower_batches, below)
    for made in range(1, steps + 1):
        before = state
        state = algorithm.step(state, upper, lower, upper_batches, lower_batches, on_failure=on_failure)
        if watch is not None:
            watch.see(made, before, state)
        ended = callback is not None and bool(callback(state))
        if ended or made % PERIOD == 0 or made == steps:
            for name in ("theta", "z"):
                for leaf in tree.flatten(state[name])[0]:
                    checks.finite(leaf, f"{name} after {state['step']} steps", _REMEDY)
        if ended:
            return state
    found = None if watch is None else watch.findings(state)
    if found is not None:
        checks.unsettled(found)
    return state
