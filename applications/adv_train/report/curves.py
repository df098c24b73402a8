"""Training curves: a chart for each quantity that at least one run has recorded, with a line for each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from adv_train.report.drawing import CARD, COLOURS, SERIES, Chart, drawn
from adv_train.report.summary import RunSummary, number, percent
from adv_train.series import ALIGNMENT, CLEAN, IMPLICIT, LOSS, ONE_STEP, ROBUST, TOP_CLASS, Series, dashes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES: Final = (ROBUST, CLEAN, ALIGNMENT, LOSS, TOP_CLASS, IMPLICIT)
_BESIDE: Final = {ROBUST: ONE_STEP}
"""The second quantity that a chart shows, in thin lines."""

MARKS: Final[dict[str, str]] = {
    "best": "epoch in best.pt",
    "judged": "evaluated epoch",
    "rolled back": "epoch that overfitted and was rolled back",
}
Points = list[tuple[float, float]]


def charts(runs: Sequence[RunSummary]) -> list[Chart]:
    """Draw each curve that at least one run has; the position of a run in the list decides its colour and dash."""
    return [chart for curve in CURVES if (chart := _chart(curve, runs)) is not None]


def marks(runs: Sequence[RunSummary]) -> list[tuple[str, str]]:
    """Return the marks on the curves of these runs, each with its meaning."""
    met = {kind for run in runs for kind, _ in _marked(run)}
    return [(kind, told) for kind, told in MARKS.items() if kind in met]


def has_one_step(runs: Sequence[RunSummary]) -> bool:
    """Return whether the chart of the robust accuracy has thin lines for the accuracy after one step."""
    return any(ONE_STEP.points(run.metrics) and ROBUST.points(run.metrics) for run in runs)


def _chart(curve: Series, runs: Sequence[RunSummary]) -> Chart | None:
    lines = {index: points for index, run in enumerate(runs) if (points := curve.points(run.metrics))}
    if not lines:
        return None
    beside = _BESIDE.get(curve)
    thin = {} if beside is None else {index: beside.points(runs[index].metrics) for index in lines}
    told = [_told(curve, runs[index], points, thin.get(index, [])) for index, points in lines.items()]

    def draw(axes: Axes) -> None:
        for index, points in lines.items():
            colour = SERIES[index % COLOURS]
            if thin.get(index):
                # Not drawn by `Series.plot`, which marks a line of a single epoch in another way.
                style: dict[str, Any] = {"linewidth": 0.9, "linestyle": dashes(index), "marker": "."}
                axes.plot(*zip(*thin[index], strict=True), color=colour, markersize=3.5, **style)
            curve.plot(axes, points, index, colour, width=2)
            _mark(axes, runs[index], dict(points), colour)
        axes.grid(axis="y", linewidth=0.8)
        curve.frame(axes)

    return drawn(curve.title, f"{curve.title} by epoch: {'; '.join(told)}.", draw, prefix=curve.key)


def _told(curve: Series, run: RunSummary, points: Points, thin: Points) -> str:
    def value(of: float) -> str:
        return percent(of) if curve.is_share else number(of, 2)

    parts = [f"{run.name} from {value(points[0][1])} to {value(points[-1][1])}"]
    if thin:
        parts.append(f"under one step from {value(thin[0][1])} to {value(thin[-1][1])}")
    return ", ".join([*parts, *(f"{MARKS[kind]} {epoch}" for kind, epoch in _marked(run))])


def _marked(run: RunSummary) -> Iterator[tuple[str, int]]:
    """Yield each epoch of a run that has a mark, with the kind of the mark."""
    back = {int(row["epoch"]): int(row["rolled_back_to"]) for row in run.metrics if "rolled_back_to" in row}
    if run.best_epoch is not None:
        yield "best", run.best_epoch
    if run.judged_epoch is not None and run.metrics:
        # After an epoch that was rolled back, the weights are those of the earlier epoch.
        yield "judged", back.get(run.judged_epoch, run.judged_epoch)
    for epoch in back:
        yield "rolled back", epoch


def _mark(axes: Axes, run: RunSummary, points: dict[float, float], colour: str) -> None:
    looks: dict[str, dict[str, Any]] = {
        "best": {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.5},
        "judged": {"marker": "o", "markersize": 5, "markeredgewidth": 0.8, "markeredgecolor": CARD},
        "rolled back": {"marker": "x", "markersize": 7, "markeredgewidth": 2},
    }
    for kind, epoch in _marked(run):
        if epoch in points:
            axes.plot([epoch], [points[epoch]], color=colour, linestyle="", zorder=3, clip_on=False, **looks[kind])
