"""The main figure of a comparison: robust against clean accuracy over the seeds, a point for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adv_train.comparison import tables
from adv_train.comparison.plan import Plan
from adv_train.comparison.results import Result, measures
from adv_train.comparison.statistics import Spread
from adv_train.report import Accuracy, Point, Scatter
from adv_train.values import format_fraction

_CHECKPOINT: Final = "best"


def scatter(plan: Plan, found: Sequence[Result]) -> Scatter:
    """Return the figure of the best checkpoints under the last attack in the list.

    Args:
        plan: The comparison.
        found: The results of its methods; the figure leaves out methods without a finished run.
    """
    attack = measures(plan)[-1]
    points = [
        Point(result.name, clean, robust)
        for result in found
        if (clean := _accuracy(result.spread(_CHECKPOINT, "sa"))) is not None
        and (robust := _accuracy(result.spread(_CHECKPOINT, attack))) is not None
    ]
    config = plan.methods[0].config
    title = f"{config.data.name}, {config.threat.norm}, ε = {format_fraction(config.threat.eps)}: best.pt"
    note = "Bars: ± one sample standard deviation over the seeds."
    if all(point.clean.ends is None for point in points):
        note = "There is one seed for each method, so no error bars."
    return Scatter(title, points, tables.title(attack), note)


def _accuracy(over: Spread) -> Accuracy | None:
    if over.mean is None:
        return None
    ends = None if over.std is None else (over.mean - over.std, over.mean + over.std)
    return Accuracy(over.mean, ends, tables.spread(over).text)
