"""Gradient alignment over training: Figure 3 of Zhang et al. (ICML 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from adv_train.errors import UserError
from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.runs import Run
from adv_train.plots.style import colour, legend_below
from adv_train.series import ALIGNMENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines: TypeAlias = list[tuple[Run, list[tuple[float, float]]]]

_ALIGNED = 0.7
"""The axis starts at 0 unless all curves lie above this alignment."""


@FIGURES.register("alignment")
@dataclass(frozen=True, kw_only=True)
class AlignmentOverTraining(Drawing[Lines]):
    """Gradient alignment on validation images after each epoch (Zhang et al., ICML 2022, Figure 3).

    Gradient alignment is the mean cosine between the gradients of the loss at an image and at a random point within eps
    of it. If it falls, one-step attacks no longer find the maximum of the loss, and training overfits to its attack.
    """

    examples: ClassVar[str] = """\
examples:
  adv-train plot alignment runs/fast-at runs/fast-at-ga runs/fast-bat --out figures"""

    def measure(self, runs: Sequence[Run], progress: bool | None = False) -> Lines:
        """Read the alignment from the records of the epochs, where training has written it."""
        lines = [(run, ALIGNMENT.points(run.metrics)) for run in runs]
        for run, points in lines:
            if not any(ALIGNMENT.key in row for row in run.metrics):
                raise UserError(
                    f"`{run.folder.path}` was trained by a version that did not record gradient alignment: its "
                    f"metrics.jsonl has no {ALIGNMENT.key}. Train it again into another folder, or leave it out."
                )
            if not points:
                raise UserError(
                    f"`{run.folder.path}` has no gradient alignment: the loss had no finite gradient on any validation "
                    "image after any epoch. Leave it out."
                )
        return lines

    def rows(self, numbers: Lines) -> list[Row]:
        """Return a row for each run and epoch."""
        return [
            {**run.about(), "epoch": int(epoch), ALIGNMENT.key: value}
            for run, points in numbers
            for epoch, value in points
        ]

    def draw(self, numbers: Lines) -> Figure:
        """Draw a line for each run."""
        from matplotlib.figure import Figure  # Not at the top: only drawing needs matplotlib.

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for index, (_, points) in enumerate(numbers):
            ALIGNMENT.plot(axes, points, index, colour(index), width=1.8)
        ALIGNMENT.frame(axes)
        axes.grid(axis="y")
        lowest = axes.get_ylim()[0]
        if lowest <= _ALIGNED:
            axes.set_ylim(min(0.0, lowest), 1.02)
        axes.set_ylabel(f"gradient alignment ({ALIGNMENT.axis})")
        axes.set_title(ALIGNMENT.title)
        legend_below(figure, list(axes.get_lines()), [run.name for run, _ in numbers])
        return figure
