"""Races of two ways to compute the same numbers, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Passes, race, ratio, relative_error
from benchmarks.registry import Cell, Goal, Setting, Table

#: The largest relative difference of the results for which a race is fair, in single precision.
_SAME_IN_SINGLE = 1e-2


@dataclass(frozen=True, eq=False)
class Pair:
    """Two ways to compute the same numbers.

    Attributes:
        title: what is computed.
        ours: computes it with blo.
        other: computes it in the other way.
        against: the name of the other way.
        limit: the largest allowed ratio of the times, `ours` over `other`; None for a figure without a goal.
        data: tensors whose matrix products are counted.
        same: the largest relative difference of the results for which the race is fair, in double precision.
    """

    title: str
    ours: Callable[[], Tensor]
    other: Callable[[], Tensor]
    against: str = "by hand"
    limit: float | None = None
    data: Sequence[Tensor] = ()
    same: float = 1e-8


def compare(title: str, pairs: Sequence[Pair], setting: Setting) -> tuple[Table, list[Goal]]:
    """Race each pair; return the table and the goals.

    Raises:
        RuntimeError: if the results of a pair differ, in double precision by more than its `same`, in single by 1e-2.
    """
    rows: list[list[Cell]] = []
    goals = []
    for pair in pairs:
        setting.log(f"  {pair.title}, against {pair.against}")
        difference = relative_error(pair.ours(), pair.other())
        if not difference <= (pair.same if setting.dtype == torch.float64 else _SAME_IN_SINGLE):
            raise RuntimeError(f"{pair.title}: blo and {pair.against} differ by {difference:.2e}, so no race is fair.")
        # The names make the race time both sides in all of its rounds.
        times = race({"blo": pair.ours, "by hand": pair.other}, setting, floor="by hand")
        over, off = ratio(times["blo"].seconds, times["by hand"].seconds)
        cells: list[Cell] = [pair.title, pair.against, difference, over]
        for name, call in (("blo", pair.ours), ("by hand", pair.other)):
            cells += [times[name].milliseconds, times[name].wall_milliseconds, _passes(pair, call)]
        rows.append(cells)
        if pair.limit is not None:
            goals.append(Goal(f"{pair.title}, over {pair.against}", over, pair.limit, off=off))
    columns = ["", "against", "difference", "ratio"]
    columns += [f"{side}: {figure}" for side in ("blo", "other") for figure in ("ms", "wall ms", "products")]
    return Table(title, columns, rows), goals


def _passes(pair: Pair, call: Callable[[], object]) -> int | None:
    if not pair.data:
        return None
    with Passes(pair.data) as passes:
        call()
    count: int = passes.count
    return count
