"""Training curves as SVG inside the page, in the page's own colours."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adv_train.report.summary import RunSummary, percent

DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")
COLOURS = 8

# Drawn in colours that stand for the page's variables, which follow the reader's light or dark scheme.
_INK, _GRID = "#010101", "#020202"
_SERIES = [f"#0303{index:02d}" for index in range(COLOURS)]
_VARIABLES = {_INK: "var(--muted)", _GRID: "var(--line)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adv_train",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


@dataclass(frozen=True)
class Curve:
    """A quantity of ``metrics.jsonl`` that is drawn by epoch.

    Attributes:
        key: Its name in the rows.
        title: What it is, for the reader.
        format: Writes one value.
        is_share: Whether it is a fraction, with an axis that starts at zero.
        needs_variation: Leave out runs in which it is zero throughout, because it does not apply to them.
    """

    key: str
    title: str
    format: Callable[[float], str]
    is_share: bool
    needs_variation: bool = False

    def points(self, run: RunSummary) -> list[tuple[float, float]]:
        """Give the ``(epoch, value)`` pairs that a run has."""
        pairs = [(row["epoch"], row[self.key]) for row in run.metrics if row.get(self.key) is not None]
        if self.needs_variation and not any(value for _, value in pairs):
            return []
        return [(float(epoch), float(value)) for epoch, value in pairs if math.isfinite(value)]


CURVES = (
    Curve("val_ra", "Robust accuracy on the validation images", percent, is_share=True),
    Curve("val_sa", "Clean accuracy on the validation images", percent, is_share=True),
    Curve("val_top_class", "Share of the validation images in the most frequent class", percent, is_share=True),
    Curve("loss", "Training loss, each method under its own attack", lambda value: f"{value:.2f}", is_share=False),
    Curve("implicit_share", "Share of the implicit gradient", percent, is_share=True, needs_variation=True),
)


@dataclass(frozen=True)
class Chart:
    """A drawing for the page.

    Attributes:
        title: What it shows.
        svg: The drawing, whose texts are escaped.
    """

    title: str
    svg: Markup


def charts(runs: Sequence[RunSummary]) -> list[Chart]:
    """Draw each curve that some run has; the colour and dash of a run follow its place in the list."""
    return [chart for curve in CURVES if (chart := _chart(curve, runs)) is not None]


def _chart(curve: Curve, runs: Sequence[RunSummary]) -> Chart | None:
    lines = {index: points for index, run in enumerate(runs) if (points := curve.points(run))}
    if not lines:
        return None
    told = [
        f"{runs[index].name} from {curve.format(points[0][1])} to {curve.format(points[-1][1])}"
        for index, points in lines.items()
    ]
    drawing = _draw(curve, lines)
    drawing.set("role", "img")
    drawing.set("aria-label", f"{curve.title} by epoch: {'; '.join(told)}.")
    # ElementTree escapes what it writes, and matplotlib drew nothing but numbers.
    return Chart(curve.title, Markup(ElementTree.tostring(drawing, encoding="unicode", method="html")))


def _draw(curve: Curve, lines: dict[int, list[tuple[float, float]]]) -> Element:
    # A figure of our own rather than pyplot's, which would choose a backend for the whole process.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, points in lines.items():
            epochs, values = zip(*points, strict=True)
            dashes = [float(length) / 2 for length in DASHES[index % len(DASHES)].split()]
            marker = "o" if len(points) == 1 else ""  # One epoch is a point: a line through it shows nothing.
            axes.plot(
                epochs,
                values,
                color=_SERIES[index % COLOURS],
                linewidth=2,
                linestyle=(0, tuple(dashes)) if dashes else "solid",
                marker=marker,
            )
        axes.grid(axis="y", linewidth=0.8)
        axes.tick_params(length=0)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curve.is_share:
            top = axes.get_ylim()[1]
            axes.set_ylim(0, min(top, 1.02) if top > 0 else 1)
            decimals = 0 if top > 0.05 else 1
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{decimals}f} %"))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _adopt(ElementTree.fromstring(buffer.getvalue()), prefix=curve.key)


def _adopt(drawing: Element, prefix: str) -> Element:
    """Turn matplotlib's SVG into a part of an HTML page: no namespaces, no fixed size, unique ids, our colours."""
    for parent in list(drawing.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # The style would reach the whole page.
                parent.remove(child)
    for element in drawing.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                value = f"{prefix}-{value}"
            value = value.replace("url(#", f"url(#{prefix}-")
            if name == "href":
                value = value.replace("#", f"#{prefix}-")
            for colour, variable in _VARIABLES.items():
                value = value.replace(colour, variable)
            element.set(name, value)
    for name in ("width", "height", "version"):
        drawing.attrib.pop(name, None)
    return drawing


def _local(name: str) -> str:
    return name.rpartition("}")[2]
