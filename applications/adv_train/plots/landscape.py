"""The adversarial loss landscape: Figure 1 of Zhang et al. (ICML 2022)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch

from adv_train.attacks.judging import progress_bar, suitable_threads
from adv_train.data.dataset import Dataset
from adv_train.data.split import to_unit_range
from adv_train.devices import find_device
from adv_train.errors import UserError
from adv_train.judged_data import cut
from adv_train.loading import build_model, load_checkpoint, load_data
from adv_train.measures import Landscape, landscape
from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.runs import Run
from adv_train.threat import Threat
from adv_train.values import Count, Positive, Range, format_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Around:
    """The landscape of one run."""

    run: Run
    epoch: int
    threat: Threat
    images: int
    found: Landscape


Surfaces: TypeAlias = list[Around]


@FIGURES.register("landscape")
@dataclass(frozen=True, kw_only=True)
class LossLandscape(Drawing[Surfaces]):
    """Loss around test images, along the loss's gradient and a random direction (Zhang et al., ICML 2022, Figure 1).

    In linf the first direction is the sign of the gradient and the second a random sign for each pixel; in l2 and l1
    they are the gradient and a random direction orthogonal to it, each of length 1 in that norm. Images are clamped to
    their range before the model sees them.

    Attributes:
        eps: Unit of both axes, in the norm of training; by default that of training.
        range: The axes reach from minus to plus so many eps.
        points: Of the grid along each axis; an odd number has the clean images in the middle.
        images: Mean over so many test images, of all classes in proportion; 64 by default.
        image: Instead: one test image by its position in the test split, from 0.
        seed: Of the random direction.
        style: surface or contour.
        checkpoint: best on validation, or last.
        batch_size: Images in a forward pass.
        device: auto, cpu, cuda, cuda:1, mps.
        data_root: Where the data sets are, if no longer where they were.
    """

    examples: ClassVar[str] = """\
examples:
  adv-train plot landscape runs/fast-at runs/fast-at-ga runs/fast-bat --out figures
  adv-train plot landscape runs/a --images 500 --style contour
  adv-train plot landscape runs/a --image 7 --range 3 --points 41"""

    eps: Positive | None = None
    range: Positive = 2.0
    points: Annotated[int, Range(2)] = 21
    images: Count | None = None
    image: Annotated[int, Range(0)] | None = None
    seed: Annotated[int, Range(0)] = 0
    style: Literal["surface", "contour"] = "surface"
    checkpoint: Literal["best", "last"] = "best"
    batch_size: Count = 512
    device: str = "auto"
    data_root: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image is not None and self.images is not None:
            raise UserError("--image chooses one image, --images the mean over several: leave one of them out.")

    def measure(self, runs: Sequence[Run], progress: bool | None = False) -> Surfaces:
        """Evaluate the models of the runs on the grid."""
        threats = [self._threat(run) for run in runs]
        size = 1 if self.image is not None else self.images or 64
        with progress_bar("landscape", len(runs) * size * self.points**2, "img", progress) as bar:
            return [self._around(run, threat, bar.update) for run, threat in zip(runs, threats, strict=True)]

    def _threat(self, run: Run) -> Threat:
        trained = run.config.threat
        if self.eps is None and trained.eps == 0:
            raise UserError(f"`{run.folder.path}` was trained at eps 0: give --eps, the unit of the axes.")
        return replace(trained, eps=self.eps or trained.eps)

    def _around(self, run: Run, threat: Threat, count: Callable[[int], object]) -> Around:
        device = find_device(self.device)
        saved = load_checkpoint(run.folder, self.checkpoint)
        model = build_model(saved).to(device)
        dataset = load_data(run.config, run.folder.split(), root=self.data_root)
        run.folder.check_split(dataset)
        test = self._chosen(dataset, device).test
        x = to_unit_range(test.images)
        shape: dict[str, Any] = {"points": self.points, "reach": self.range, "seed": self.seed}
        with suitable_threads(model, x):
            try:
                found = landscape(model, x, test.labels, threat, batch_size=self.batch_size, count=count, **shape)
            except UserError as error:
                raise UserError(f"`{run.folder.path}`: {error}") from error
        if found.flat:
            warnings.warn(
                f"{run.name}: the loss of {found.flat} of {len(x)} images has no gradient, so that nothing changes "
                "along their adversarial direction.",
                stacklevel=2,
            )
        return Around(run, saved.epoch, threat, len(x), found)

    def _chosen(self, dataset: Dataset, device: torch.device) -> Dataset:
        if self.image is None:
            return cut(dataset, self.images or 64, device)
        if self.image >= len(dataset.test):
            raise UserError(f"The test split has {len(dataset.test)} images, counted from 0: there is no {self.image}.")
        return cut(replace(dataset, test=dataset.test.subset(torch.tensor([self.image]))), None, device)

    def rows(self, numbers: Surfaces) -> list[Row]:
        """Give a row for each run and point of the grid."""
        return [
            {
                **each.run.about(),
                "checkpoint": f"{self.checkpoint}.pt",
                "epoch": each.epoch,
                "eps": each.threat.eps,
                "images": each.images,
                "image": self.image,
                "direction_seed": self.seed,
                "adversarial_in_eps": float(a),
                "random_in_eps": float(b),
                "loss": float(each.found.loss[i, j]),
                "clamped": float(each.found.clamped[i, j]),
            }
            for each in numbers
            for i, a in enumerate(each.found.steps)
            for j, b in enumerate(each.found.steps)
        ]

    def draw(self, numbers: Surfaces) -> Figure:
        """Draw a panel for each run; all share the scale of the loss."""
        from matplotlib.cm import ScalarMappable  # Not at the top: only drawing needs matplotlib.
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        columns = 2 if len(numbers) == 4 else min(3, len(numbers))
        rows = math.ceil(len(numbers) / columns)
        figure = Figure(figsize=(3.9 * columns + 1.2, 3.6 * rows + 0.4), layout="constrained")
        low, high = _span(numbers)
        flat = self.style == "contour"
        panels = []
        for place, each in enumerate(numbers, start=1):
            axes = figure.add_subplot(rows, columns, place, **({} if flat else {"projection": "3d"}))
            (_contour if flat else _surface)(axes, each.found, low, high)
            # Axes in three dimensions leave room above them.
            title = f"{each.run.name}, ε = {format_fraction(each.threat.eps)} ({each.threat.norm})"
            axes.set_title(title, y=None if flat else 0.95)
            panels.append(axes)
        scale = ScalarMappable(Normalize(low, high), _MAP)
        figure.colorbar(scale, ax=panels, label="cross-entropy (nats)", shrink=0.75, pad=0.02, aspect=25)
        figure.supxlabel(self._caption(numbers), fontsize=9)
        return figure

    def _caption(self, numbers: Surfaces) -> str:
        what = f"test image {self.image}" if self.image is not None else f"mean over {numbers[0].images} test images"
        ranges = sorted({(each.threat.low, each.threat.high) for each in numbers})
        told = " or ".join(f"[{low:g}, {high:g}]" for low, high in ranges)
        return f"{what}; images are clamped to {told}; axes in units of ε"


_MAP = "viridis"  # Rises evenly in brightness, so that it reads in grey and with any colour vision.


def _span(numbers: Surfaces) -> tuple[float, float]:
    low = min(float(each.found.loss.min()) for each in numbers)
    high = max(float(each.found.loss.max()) for each in numbers)
    return low, high if high > low else low + 1e-6


def _surface(axes: Any, found: Landscape, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    # `Any`: what axes in three dimensions have is not declared by those in two.
    a, b = np.meshgrid(found.steps, found.steps, indexing="ij")
    look: dict[str, Any] = {"linewidth": 0.2, "edgecolor": "#00000055", "rstride": 1, "cstride": 1}
    axes.plot_surface(a, b, found.loss, cmap=_MAP, vmin=low, vmax=high, **look)
    axes.set_zlim(low, high)
    axes.set_xlabel("adversarial (ε)")
    axes.set_ylabel("random (ε)")
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5))  # More would run into each other.
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
