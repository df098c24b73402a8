"""Training curves of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.runs import Run
from adv_train.plots.style import colour, legend_below, line
from adv_train.series import ALIGNMENT, CLEAN, IMPLICIT, LOSS, ONE_STEP, RATE, ROBUST, Series, dashes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (LOSS, RATE, CLEAN, ROBUST, ALIGNMENT, IMPLICIT)
_RING: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.4}
_CROSS: dict[str, Any] = {"marker": "x", "markersize": 9, "markeredgewidth": 2.2, "clip_on": False, "zorder": 3}
_THIN: dict[str, Any] = {"marker": ".", "markersize": 4, "linewidth": 0.9}

Runs: TypeAlias = Sequence[Run]


@FIGURES.register("curves")
@dataclass(frozen=True, kw_only=True)
class TrainingCurves(Drawing[Runs]):
    """Loss, learning rate, clean and robust accuracy, gradient alignment and implicit share over the epochs.

    The loss is the training loss; accuracies and alignment are measured on validation images. Beside the accuracy under
    PGD, a thin line shows the accuracy after one FGSM step: if the thin line rises while the other falls, the model has
    overfitted to its attack. A panel shows only the runs that have its quantity. A ring marks the epoch in best.pt; a
    cross marks the first epoch that overfitted, and each epoch that was rolled back.
    """

    examples: ClassVar[str] = """\
examples:
  adv-train plot curves runs/a
  adv-train plot curves runs/fast-at runs/fast-bat --out figures"""

    def measure(self, runs: Runs, progress: bool | None = False) -> Runs:
        """Read the records of the epochs."""
        for run in runs:
            _ = run.metrics  # Raises an error for a run without an epoch, before any file is written.
        return runs

    def rows(self, numbers: Runs) -> list[Row]:
        """Return a row for each run and epoch; values that were not recorded are empty."""
        return [
            {
                **run.about(),
                "epoch": record["epoch"],
                "best": int(record["epoch"] == run.best_epoch),
                "overfitted": int(record["epoch"] in run.overfitted_epochs),
                **{series.key: record.get(series.key) for series in (*PANELS, ONE_STEP)},
            }
            for run in numbers
            for record in run.metrics
        ]

    def draw(self, numbers: Runs) -> Figure:
        """Draw a panel for each quantity that at least one run has."""
        from matplotlib.figure import Figure  # Not at the top: only drawing needs matplotlib.
        from matplotlib.lines import Line2D

        shown = [series for series in PANELS if any(series.points(run.metrics) for run in numbers)]
        rows = (len(shown) + 1) // 2
        figure = Figure(figsize=(9.6, 2.9 * rows + 0.4), layout="constrained")
        for place, series in enumerate(shown, start=1):
            _panel(figure.add_subplot(rows, 2, place), series, numbers)
        # Lines without data, so that the legend has every run, also those that a panel leaves out.
        handles = [Line2D([], [], **line(index)) for index in range(len(numbers))]
        names = [run.name for run in numbers]
        looks: dict[str, dict[str, Any]] = {"epoch in best.pt": {"linestyle": "", **_RING}}
        if any(ONE_STEP.points(run.metrics) for run in numbers):
            looks["accuracy after one FGSM step"] = _THIN
        if any(run.overfitted_epochs for run in numbers):
            looks["overfitted to its attack"] = {"linestyle": "", **_CROSS}
        signs = [Line2D([], [], color="#444444", **look) for look in looks.values()]
        legend_below(figure, [*handles, *signs], [*names, *looks])
        return figure


def _panel(axes: Axes, series: Series, runs: Runs) -> None:
    for index, run in enumerate(runs):
        points = series.points(run.metrics)
        if not points:
            continue
        series.plot(axes, points, index, colour(index), width=1.8)
        thin = ONE_STEP.points(run.metrics) if series is ROBUST else []
        if thin:
            axes.plot(*zip(*thin, strict=True), color=colour(index), linestyle=dashes(index), **_THIN)
        for epochs, look in (([run.best_epoch], _RING), (run.overfitted_epochs, _CROSS)):
            marked = [point for point in points if point[0] in epochs]
            if marked:
                axes.plot(*zip(*marked, strict=True), linestyle="", color=colour(index), **look)
    series.frame(axes)
    axes.grid(axis="y")
    axes.set_title(series.title)
    axes.set_ylabel(series.axis)
