"""The style of figures: fixed sizes, and lines that differ in colour, dash and marker, so also in grey."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from adv_train.series import dashes
from adv_train.values import format_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): distinguishable with any colour vision; without their yellow, which is too bright for a line.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
    "svg.hashsalt": "adv_train",
    "text.parse_math": False,  # A folder may have a dollar sign in its name.
}
_CHARACTER = 0.085
"""Approximate width of a character of the legend, in inches."""

_ROW = 0.22
"""Approximate height of a row of the legend, in inches."""


def colour(index: int) -> str:
    """Return the colour of the line at a position in the legend."""
    return COLOURS[index % len(COLOURS)]


def line(index: int) -> dict[str, Any]:
    """Return colour and dash of the line at a position in the legend."""
    return {"color": colour(index), "linestyle": dashes(index)}


def legend_below(figure: Figure, handles: list[Any], names: list[str]) -> None:
    """Put the legend below the panels, in as many columns as fit, and increase the height of the figure by its rows."""
    width = _CHARACTER * max(map(len, names)) + 0.7
    columns = max(1, min(len(names), int(figure.get_figwidth() / width)))
    figure.set_figheight(figure.get_figheight() + _ROW * (math.ceil(len(names) / columns) - 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def budget_axis(axes: Axes, budgets: list[float]) -> None:
    """Put a tick at each budget, with a label such as 8/255."""
    axes.set_xticks(budgets, [f"{format_fraction(eps)}" for eps in budgets])
    if len(budgets) > 5:
        axes.tick_params(axis="x", labelrotation=45)
