"""Embed drawings of matplotlib as SVG in the page, in the page's colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8

# Placeholder colours: they are replaced by CSS variables of the page, which follow the reader's light or dark scheme.
INK, GRID, CARD = "#010101", "#020202", "#040404"
SERIES = [f"#0303{index:02d}" for index in range(COLOURS)]
_VARIABLES = {INK: "var(--muted)", GRID: "var(--line)", CARD: "var(--card)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adv_train",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
WIDTH = 4.6
"""Width of every drawing in inches: on the narrowest phone, a text of 10 points is still about 10 pixels high."""


@dataclass(frozen=True)
class Chart:
    """A drawing for the page.

    Attributes:
        title: Title of the drawing.
        svg: The drawing, with escaped texts.
    """

    title: str
    svg: Markup


def drawn(title: str, told: str, draw: Callable[[Axes], None], *, prefix: str, height: float = 2.7) -> Chart:
    """Make a drawing in the page's style.

    Args:
        title: Title of the drawing.
        told: Description of the drawing in words, for screen readers.
        draw: Draws into the axes.
        prefix: Prefix of the ids inside the drawing, unique in the page.
        height: Height in inches.
    """
    from matplotlib import rc_context  # Not at the top: only drawing needs matplotlib.
    from matplotlib.figure import Figure  # Not pyplot, which would choose a backend for the whole process.

    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = _adopt(ElementTree.fromstring(buffer.getvalue()), prefix)
    drawing.set("role", "img")
    drawing.set("aria-label", told)
    # ElementTree escapes all texts, so the result is safe to mark as HTML.
    return Chart(title, Markup(ElementTree.tostring(drawing, encoding="unicode", method="html")))


def _adopt(drawing: Element, prefix: str) -> Element:
    """Convert matplotlib's SVG for an HTML page: no namespaces, no fixed size, unique ids, the page's colours."""
    for parent in list(drawing.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # The style would apply to the whole page.
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
