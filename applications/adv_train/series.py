"""The metrics of a run as curves over the epochs, for the report and for figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES: Final = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")
"""Dash patterns, which distinguish runs also without colour: lengths of ink and gap in points."""


@dataclass(frozen=True)
class Series:
    """A quantity of ``metrics.jsonl`` that is drawn by epoch.

    Attributes:
        key: Its key in the rows.
        title: Its title for the reader.
        axis: Label of its axis, with the unit.
        is_share: Whether it is a fraction; its axis then starts at zero.
        needs_variation: Leave out runs in which it is always zero, because it does not apply to them.
    """

    key: str
    title: str
    axis: str
    is_share: bool = False
    needs_variation: bool = False

    def points(self, metrics: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        """Return the finite values as pairs ``(epoch, value)``; none if the quantity does not apply to the run."""
        pairs = [(row["epoch"], row[self.key]) for row in metrics if row.get(self.key) is not None]
        if self.needs_variation and not any(value for _, value in pairs):
            return []
        return [(float(epoch), float(value)) for epoch, value in pairs if math.isfinite(value)]

    def plot(self, axes: Axes, points: Sequence[tuple[float, float]], index: int, colour: str, width: float) -> None:
        """Draw the line of the run at position `index` in the list of runs."""
        epochs, values = zip(*points, strict=True)
        marker = "o" if len(points) == 1 else ""  # A line through a single point is invisible.
        axes.plot(epochs, values, color=colour, linewidth=width, linestyle=dashes(index), marker=marker)

    def frame(self, axes: Axes) -> None:
        """Set up the axes, after all lines are drawn."""
        from matplotlib.ticker import FuncFormatter, MaxNLocator  # Not at the top: only drawing needs matplotlib.

        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if self.is_share:
            top = axes.get_ylim()[1]
            axes.set_ylim(0, min(top, 1.02) if top > 0 else 1)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def dashes(index: int) -> Any:
    """Return matplotlib's line style for the run at a position in the list."""
    lengths = [float(length) / 2 for length in DASHES[index % len(DASHES)].split()]
    return (0, tuple(lengths)) if lengths else "solid"


ROBUST: Final = Series("val_ra", "Robust accuracy on the validation images", "accuracy under PGD", is_share=True)
ONE_STEP: Final = Series(
    "val_fgsm", "Accuracy after one step of an attack on the validation images", "accuracy", is_share=True
)
CLEAN: Final = Series("val_sa", "Clean accuracy on the validation images", "accuracy", is_share=True)
TOP_CLASS: Final = Series(
    "val_top_class", "Share of the validation images in the most frequent class", "share of images", is_share=True
)
LOSS: Final = Series("loss", "Training loss, each method under its own attack", "mean loss (nats)")
RATE: Final = Series("lr", "Learning rate at the end of the epoch", "learning rate")
IMPLICIT: Final = Series(
    "implicit_share", "Share of the implicit gradient", "|implicit| / |direct|", is_share=True, needs_variation=True
)
ALIGNMENT: Final = Series("val_alignment", "Gradient alignment on the validation images", "mean cosine")
