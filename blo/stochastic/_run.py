"""The loop over the steps of a stochastic algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from blo import tree
from blo._entrance import entrance
from blo._failures import Checks
from blo._settings import require_count
from blo._types import OnFailure
from blo.stochastic._base import Algorithm, Objective, State
from blo.stochastic._batches import endless, fixed
from blo.stochastic._watch import ConvergenceTest

#: Number of steps between two tests whether theta and z are finite: each test makes the host wait for the device.
PERIOD = 8
_REMEDY = (
    "If the run has diverged, lower `lower_step` or `upper_step`. If a batch is the cause, look for NaN and for "
    "batches without examples, whose mean is undefined."
)


@entrance()
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
        state: from `algorithm.init(theta, z0)`, or the result of an earlier call, which this call continues.
        upper: `upper(theta, z, batch)` returns a scalar.
        lower: `lower(theta, z, batch)` returns a scalar.
        steps: the number of further steps.
        upper_batches: an iterator, which is read from its current position, or an iterable such as a list or a
            `DataLoader`, which is repeated. One with a length is read from the position at which an earlier call on
            this state ended, by skipping batches; for many short calls pass an iterator. If None, `upper` is called
            with None instead of a batch.
        lower_batches: the same for `lower`.
        callback: called with each new state, which holds the number of steps made under `"step"`. Return true to stop.
        on_failure: `"raise"`, `"warn"` or `"ignore"` for three problems: theta or z is not finite (tested every 8
            steps), `lower` does not depend on theta, or the run does not converge. By default the first raises an error
            and the others give warnings. A run counts as not converging if its steps become longer and longer. Without
            batches, or with one batch for each objective, it also counts as not converging if theta oscillates, or if
            theta or z moves in one direction without slowing down.

    Returns:
        The state after the last step made, a dict as `algorithm.init` returns it; `state` itself is not modified.

    Raises:
        StructureError: as `algorithm.step` does.
        NonFiniteError: if theta or z is not finite.
        ConvergenceError: instead of the warnings below, if `on_failure="raise"`.
        ValueError: if `steps` is below 1; and as `algorithm.step` does.

    Warns:
        ConvergenceWarning: if the run does not converge, or `F2SA` moves theta too fast for z; with
            `on_failure="warn"`, also if theta or z is not finite.
        ConstantWarning: if `lower` does not depend on theta.
    """
    require_count(steps, "steps")
    checks = Checks(on_failure)
    watch = None if checks.off else ConvergenceTest(steps, noisy=not (fixed(upper_batches) and fixed(lower_batches)))
    above, below = state.get("taken", (0, 0)) if isinstance(state, dict) else (0, 0)
    upper_batches, lower_batches = endless(upper_batches, above), endless(lower_batches, below)
    for made in range(1, steps + 1):
        before = state
        state = algorithm.step(state, upper, lower, upper_batches, lower_batches, on_failure=on_failure)
        # `before` needs no copy, since a step does not modify its state.
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
