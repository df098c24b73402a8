"""SABA: SOBA with SAGA's variance reduction for all directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from blo._scheduled import OptimizerFactory, SchedulerFactory
from blo._settings import require_count
from blo.errors import StructureError
from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._batches import Stream
from blo.stochastic._descent import Descent, require_descent
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Schedule, at, require

#: The vectors that the memory stores for one batch.
Row: TypeAlias = tuple[Tensor, ...]


@final
@dataclass(frozen=True, kw_only=True)
class SABA(Algorithm):
    """Stochastic average bilevel algorithm: SOBA, with each quantity corrected by the last value on the same batch.

    The data are a fixed number of batches of equal weight, which are drawn uniformly. Each batch comes with its number,
    as a pair `(number, batch)`: `draw(list(enumerate(batches)), generator)`. The memory holds a row of `2 n + p`
    numbers for each lower batch and of `n + p` for each upper batch, where n and p are the sizes of z and theta.

    Args:
        lower_step: step size of z and q; constant steps suffice. None with a `lower_optimizer`.
        upper_step: step size of theta. The mean expected squared norm of the hypergradient over T steps is O(1 / T),
            and F converges linearly if it satisfies the Polyak-Łojasiewicz inequality.
        upper_count: number of upper batches.
        lower_count: number of lower batches.
        lower_optimizer: creates a torch optimiser for z, and another for q, instead of plain gradient steps: `lambda
            parameters: torch.optim.Adam(parameters, lr=0.1)`. The analysis assumes that g is strongly convex in z,
            plain steps of constant size on z and q, and a fixed, small ratio of `upper_step` to `lower_step`. With
            another optimiser the rates are not proved.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `lower_scheduler` is given
            without `lower_optimizer`, a step size is not positive, or a count is below 1.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022, Sec. 2 and 3. The table starts at zero. Its mean is summed
    again once in as many steps as it has rows, so that rounding errors do not accumulate.
    """

    lower_step: Schedule | None = None
    upper_step: Schedule
    upper_count: int
    lower_count: int
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self)
        require(self.upper_step, "upper_step")
        require_count(self.upper_count, "upper_count")
        require_count(self.lower_count, "lower_count")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        # All rows share these zeros, since rows are replaced and never written to.
        # Zeros cause no bias: the expectation of `found - row + mean` is the full direction for every table.
        p, n = torch.zeros_like(theta), torch.zeros_like(z)
        upper, lower = (p, n), (n, n, p)
        return {
            "q": n,
            "upper_rows": [upper] * self.upper_count,
            "upper_mean": upper,
            "lower_rows": [lower] * self.lower_count,
            "lower_mean": lower,
        }

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        q = memory["q"]
        i, lower_batch = _numbered(oracle.streams[1], memory["lower_rows"], self.lower_count, "lower")
        j, upper_batch = _numbered(oracle.streams[0], memory["upper_rows"], self.upper_count, "upper")
        lower = oracle.lower_on(lower_batch).products(theta, z, q)
        upper = oracle.upper_on(upper_batch).gradients(theta, z)

        (slope, curved, cross), lower_rows, lower_mean = _corrected(
            memory["lower_rows"], memory["lower_mean"], i, lower, k
        )
        (direct, v), upper_rows, upper_mean = _corrected(memory["upper_rows"], memory["upper_mean"], j, upper, k)
        descent, gamma = Descent(self, k, memory), at(self.upper_step, k, "upper_step")
        return (
            theta - gamma * (direct - cross),
            descent.move("z", z, slope),
            {
                "q": descent.move("q", q, curved - v),
                "upper_rows": upper_rows,
                "upper_mean": upper_mean,
                "lower_rows": lower_rows,
                "lower_mean": lower_mean,
                **descent.memory(),
            },
        )


def _corrected(rows: Sequence[Row], mean: Row, index: int, found: Row, k: int) -> tuple[Row, list[Row], Row]:
    """Return `found - row + mean`, the rows with `found` in place of that row, and the new mean.

    Rows are replaced and never written to, so that earlier states, which share the other rows, do not change.
    """
    change = [new - old for new, old in zip(found, rows[index], strict=True)]
    # The mean before the update: with the new row in it, the expectation would not be the full direction.
    direction = tuple(c + m for c, m in zip(change, mean, strict=True))
    updated = tuple(m + c / len(rows) for c, m in zip(change, mean, strict=True))
    kept = [*rows[:index], found, *rows[index + 1 :]]
    if (k + 1) % len(rows) == 0:
        # An updated mean accumulates the rounding errors of all earlier rows, and the first rows may be large. Summing
        # it again once in as many steps as there are rows costs one row per step on average.
        updated = tuple(sum(parts[1:], parts[0]) / len(rows) for parts in zip(*kept, strict=True))
    return direction, kept, updated


def _numbered(stream: Stream, rows: Sequence[Row], count: int, name: str) -> tuple[int, Any]:
    """Return the number of the next batch, and the batch.

    Raises:
        StructureError: if the table does not have `count` rows, or the stream does not yield pairs with such a number.
    """
    if len(rows) != count:
        raise StructureError(
            f"`state` has rows for {len(rows)} {name} batches, but `{name}_count` is {count}. Start again with `init`."
        )
    drawn = stream.next()
    if not (isinstance(drawn, tuple | list) and len(drawn) == 2 and isinstance(drawn[0], Integral)):
        pair = isinstance(drawn, tuple | list)
        found = ", ".join(type(part).__name__ for part in drawn) if pair else type(drawn).__name__
        raise StructureError(
            f"SABA takes pairs (number, batch), but got {found}. Draw from `list(enumerate(batches))`."
        )
    number = int(drawn[0])
    if not 0 <= number < count:
        raise StructureError(
            f"batches must be numbered from 0 to {count - 1}, because SABA was created for {count} batches, but one "
            f"has the number {number}."
        )
    return number, drawn[1]
