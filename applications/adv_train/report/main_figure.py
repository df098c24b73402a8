"""The main figure of the page: accuracies with intervals of one run, or robust against clean accuracy of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adv_train.report.drawing import CARD, COLOURS, SERIES, Chart, drawn
from adv_train.report.summary import RunSummary, accuracies, alike, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ends = tuple[float, float]
_COLLAPSED = 0.5
"""A method below this share of the best robust accuracy would squeeze the others together: it is drawn at the edge."""


@dataclass(frozen=True)
class Accuracy:
    """An accuracy of a method.

    Attributes:
        value: The accuracy, a fraction.
        ends: Lower and upper end of its error bar, fractions; None draws no bar.
        text: The accuracy as text.
    """

    value: float
    ends: Ends | None
    text: str


@dataclass(frozen=True)
class Point:
    """One method in the figure of several: its clean and its robust accuracy."""

    name: str
    clean: Accuracy
    robust: Accuracy


@dataclass(frozen=True)
class Scatter:
    """Robust against clean accuracy, a point for each method.

    Attributes:
        title: Title of the figure; it names the data if the page has several figures.
        points: The methods that have both accuracies.
        robust_axis: Name of the robust accuracy.
        note: A sentence that explains the error bars.
    """

    title: str
    points: Sequence[Point]
    robust_axis: str
    note: str

    @property
    def key(self) -> list[tuple[int, int, Point]]:
        """Number, colour and method of each point."""
        return [(index + 1, index % COLOURS, point) for index, point in enumerate(self.points)]

    @property
    def caption(self) -> str:
        """The note, and the meaning of triangles if there are any."""
        if len(self._near) == len(self.points):
            return self.note
        return f"{self.note} Triangles: methods outside the frame, below half of the best robust accuracy."

    @property
    def _near(self) -> list[Point]:
        """The methods that share the frame."""
        best = max((point.robust.value for point in self.points), default=0.0)
        return [point for point in self.points if point.robust.value >= _COLLAPSED * best]

    def chart(self, place: int) -> Chart:
        """Draw the figure.

        Args:
            place: Number of the figure in the page.
        """
        told = "; ".join(f"{p.name} clean {p.clean.text}, robust {p.robust.text}" for p in self.points)
        return drawn(self.title, f"{self.title}: {told}.", self._draw, prefix=f"main{place}", height=3.4)

    def _draw(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator  # Not at the top: only drawing needs matplotlib.

        near = self._near
        axes.margins(0.12)
        for number, colour, point in self.key:
            if point in near:
                _put(axes, number, SERIES[colour], point.clean, point.robust, fmt="o")
        # The limits are those of the points so far.
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        axes.set(xlim=(left, right), ylim=(bottom, top))
        for number, colour, point in self.key:
            if point not in near:
                x, y = min(max(point.clean.value, left), right), min(max(point.robust.value, bottom), top)
                edge = Accuracy(x, None, ""), Accuracy(y, None, "")
                _put(axes, number, SERIES[colour], *edge, fmt="v", clip_on=False)
        axes.grid(linewidth=0.8)
        axes.set_xlabel("clean accuracy")
        axes.set_ylabel(f"robust accuracy ({self.robust_axis})")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(_tick)


def of_runs(runs: Sequence[RunSummary]) -> Scatter | None:
    """Compare runs in one figure; None if they differ in threat or test images, or have no attack in common."""
    judged = [run for run in runs if run.evaluation]
    if not judged or not alike(judged):
        return None
    found = [{title: (value, ends) for title, value, ends in accuracies(run)} for run in runs]
    shared = [title for title in found[0] if title != "SA" and all(title in each for each in found)]
    if len(runs) < 2 or not shared or not all("SA" in each for each in found):
        return None
    strongest = "RA-AA" if "RA-AA" in shared else shared[-1]
    points = [
        Point(run.name, _accuracy(*each["SA"]), _accuracy(*each[strongest]))
        for run, each in zip(runs, found, strict=True)
    ]
    note = "Bars: 95 % Wilson intervals over the test images; one seed each."
    return Scatter("Robust against clean accuracy", points, strongest, note)


def of_run(run: RunSummary) -> Chart | None:
    """Draw the accuracies of a run with their confidence intervals."""
    found = accuracies(run)
    if not found:
        return None

    def draw(axes: Axes) -> None:
        for place, (_, value, ends) in enumerate(found):
            lengths = _lengths(_accuracy(value, ends))
            look: dict[str, Any] = {"markersize": 8, "elinewidth": 2, "capsize": 4, "color": SERIES[0]}
            axes.errorbar(value, place, xerr=lengths, fmt="o", **look)
        axes.set_yticks(range(len(found)), [title for title, _, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", linewidth=0.8)
        axes.xaxis.set_major_formatter(_tick)

    told = "; ".join(f"{title} {_accuracy(value, ends).text}" for title, value, ends in found)
    height = 0.5 + 0.36 * len(found)
    return drawn(
        "Accuracies with 95 % intervals", f"Accuracies of {run.name}: {told}.", draw, prefix="main1", height=height
    )


def _accuracy(value: float, ends: Sequence[float] | None) -> Accuracy:
    if ends is None:
        return Accuracy(value, None, percent(value))
    low, high = ends
    return Accuracy(value, (low, high), f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]")


def _lengths(of: Accuracy) -> list[list[float]] | None:
    """Return the lengths of an error bar below and above the value, in matplotlib's format."""
    if of.ends is None:
        return None
    return [[max(0.0, of.value - of.ends[0])], [max(0.0, of.ends[1] - of.value)]]


def _put(axes: Axes, number: int, colour: str, x: Accuracy, y: Accuracy, **look: Any) -> None:
    """Draw a method's point with its number inside."""
    bars: dict[str, Any] = {"xerr": _lengths(x), "yerr": _lengths(y), "elinewidth": 1.4, "capsize": 3}
    edge: dict[str, Any] = {"markersize": 13, "markeredgecolor": CARD, "markeredgewidth": 1}
    axes.errorbar(x.value, y.value, color=colour, ecolor=colour, **bars, **edge, **look)
    inside: dict[str, Any] = {"ha": "center", "va": "center", "color": CARD, "fontsize": 8, "fontweight": "bold"}
    axes.annotate(str(number), (x.value, y.value), annotation_clip=False, zorder=4, **inside)


def _tick(value: float, _: object) -> str:
    return f"{100 * value:.4g} %"
