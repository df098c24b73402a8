"""Draw loss landscapes as panels of one figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from adv_train.measures import Landscape
from adv_train.plots.runs import Run
from adv_train.threat import Threat
from adv_train.values import format_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAP = "viridis"  # Its brightness rises evenly, so that it is readable in grey and with any colour vision.


@dataclass(frozen=True, eq=False)
class Around:
    """The landscape of one run; `weights` is their digest, as in a record of evaluation."""

    run: Run
    epoch: int
    weights: str
    threat: Threat
    images: int
    found: Landscape


Surfaces: TypeAlias = list[Around]


def drawn(numbers: Surfaces, *, flat: bool) -> Figure:
    """Draw a panel for each run, as contours or as a surface; all panels have the same scale of the loss."""
    from matplotlib.cm import ScalarMappable  # Not at the top: only drawing needs matplotlib.
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    columns = 2 if len(numbers) == 4 else min(3, len(numbers))
    rows = math.ceil(len(numbers) / columns)
    figure = Figure(figsize=(3.9 * columns + 1.2, 3.6 * rows + 0.4), layout="constrained")
    low, high = _span(numbers)
    panels = []
    for place, each in enumerate(numbers, start=1):
        axes = figure.add_subplot(rows, columns, place, **({} if flat else {"projection": "3d"}))
        (_contour if flat else _surface)(axes, each.found, low, high)
        # Three-dimensional axes leave empty space above them.
        title = f"{each.run.name}, ε = {format_fraction(each.threat.eps)} ({each.threat.norm})"
        axes.set_title(title, y=None if flat else 0.95)
        panels.append(axes)
    scale = ScalarMappable(Normalize(low, high), _MAP)
    figure.colorbar(scale, ax=panels, label="cross-entropy (nats)", shrink=0.75, pad=0.02, aspect=25)
    return figure


def _span(numbers: Surfaces) -> tuple[float, float]:
    low = min(float(each.found.loss.min()) for each in numbers)
    high = max(float(each.found.loss.max()) for each in numbers)
    return low, high if high > low else low + 1e-6


def _surface(axes: Any, found: Landscape, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    # `Any`, because the type Axes does not declare the methods of three-dimensional axes.
    a, b = np.meshgrid(found.steps, found.steps, indexing="ij")
    look: dict[str, Any] = {"linewidth": 0.2, "edgecolor": "#00000055", "rstride": 1, "cstride": 1}
    axes.plot_surface(a, b, found.loss, cmap=_MAP, vmin=low, vmax=high, **look)
    axes.set_zlim(low, high)
    axes.set_xlabel("adversarial (ε)")
    axes.set_ylabel("random (ε)")
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5))  # More labels would overlap.
    axes.tick_params(labelsize=9, pad=1)
    axes.view_init(elev=25, azim=-125)
    axes.set_box_aspect((1, 1, 0.8), zoom=0.95)


def _contour(axes: Axes, found: Landscape, low: float, high: float) -> None:
    levels = np.linspace(low, high, 16)
    axes.contourf(found.steps, found.steps, found.loss.T, levels, cmap=_MAP, vmin=low, vmax=high)
    axes.contour(found.steps, found.steps, found.loss.T, levels, colors="#00000055", linewidths=0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("adversarial direction (ε)")
    axes.set_ylabel("random direction (ε)")
