"""Training curves of several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.runs import Run
from adv_train.plots.style import colour, legend_below, line
from adv_train.series import ALIGNMENT, CLEAN, IMPLICIT, LOSS, RATE, ROBUST, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (LOSS, RATE, CLEAN, ROBUST, ALIGNMENT, IMPLICIT)
_BEST = "epoch in best.pt"
_RING: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.4}

Runs: TypeAlias = Sequence[Run]


@FIGURES.register("curves")
@dataclass(frozen=True, kw_only=True)
class TrainingCurves(Drawing[Runs]):
    """Loss, learning rate, clean and robust accuracy, gradient alignment and implicit share over the epochs.

    The loss is that of training, accuracies and alignment are measured on validation images. A panel shows the runs
    that have its quantity; a ring marks the epoch in best.pt.
    """

    examples: ClassVar[str] = """\
examples:
  adv-train plot curves runs/a
  adv-train plot curves runs/fast-at runs/fast-bat --out figures"""

    def measure(self, runs: Runs, progress: bool | None = False) -> Runs:
        """Read the records of the epochs."""
        for run in runs:
            _ = run.metrics  # Tells of a run without an epoch before anything is written.
        return runs

    def rows(self, numbers: Runs) -> list[Row]:
        """Give a row for each run and epoch; what was not recorded is empty."""
        return [
            {
                **run.about(),
                "epoch": record["epoch"],
                "best": int(record["epoch"] == run.best_epoch),
                **{series.key: record.get(series.key) for series in PANELS},
            }
            for run in numbers
            for record in run.metrics
        ]

    def draw(self, numbers: Runs) -> Figure:
        """Draw a panel for each quantity that some run has."""
        from matplotlib.figure import Figure  # Not at the top: only drawing needs matplotlib.
        from matplotlib.lines import Line2D

        shown = [series for series in PANELS if any(series.points(run.metrics) for run in numbers)]
        rows = (len(shown) + 1) // 2
        figure = Figure(figsize=(9.6, 2.9 * rows + 0.4), layout="constrained")
        for place, series in enumerate(shown, start=1):
            _panel(figure.add_subplot(rows, 2, place), series, numbers)
        # Lines without data, so that a run which a panel leaves out still has its own.
        handles = [Line2D([], [], **line(index)) for index in range(len(numbers))]
        ring = Line2D([], [], linestyle="", color="#444444", **_RING)
        legend_below(figure, [*handles, ring], [*(run.name for run in numbers), _BEST])
        return figure


def _panel(axes: Axes, series: Series, runs: Runs) -> None:
    for index, run in enumerate(runs):
        points = series.points(run.metrics)
        if not points:
            continue
        series.plot(axes, points, index, colour(index), width=1.8)
        best = [point for point in points if point[0] == run.best_epoch]
        if best:
            axes.plot(*zip(*best, strict=True), linestyle="", color=colour(index), **_RING)
    series.frame(axes)
    axes.grid(axis="y")
    axes.set_title(series.title)
    axes.set_ylabel(series.axis)
