"""Training curves as SVG inside the page, in the page's own colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from adv_train.report.summary import RunSummary, number, percent
from adv_train.series import ALIGNMENT, CLEAN, IMPLICIT, LOSS, ROBUST, TOP_CLASS, Series

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


CURVES = (ROBUST, CLEAN, TOP_CLASS, LOSS, ALIGNMENT, IMPLICIT)


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


def _chart(curve: Series, runs: Sequence[RunSummary]) -> Chart | None:
    lines = {index: points for index, run in enumerate(runs) if (points := curve.points(run.metrics))}
    if not lines:
        return None
    told = [
        f"{runs[index].name} from {_told(curve, points[0][1])} to {_told(curve, points[-1][1])}"
        for index, points in lines.items()
    ]
    drawing = _draw(curve, lines)
    drawing.set("role", "img")
    drawing.set("aria-label", f"{curve.title} by epoch: {'; '.join(told)}.")
    # ElementTree escapes what it writes, and matplotlib drew nothing but numbers.
    return Chart(curve.title, Markup(ElementTree.tostring(drawing, encoding="unicode", method="html")))


def _told(curve: Series, value: float) -> str:
    return percent(value) if curve.is_share else number(value, 2)


def _draw(curve: Series, lines: dict[int, list[tuple[float, float]]]) -> Element:
    # A figure of our own rather than pyplot's, which would choose a backend for the whole process.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, points in lines.items():
            curve.plot(axes, points, index, _SERIES[index % COLOURS], width=2)
        axes.grid(axis="y", linewidth=0.8)
        axes.tick_params(length=0)
        curve.frame(axes)
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
