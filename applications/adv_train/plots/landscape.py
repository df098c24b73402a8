"""The adversarial loss landscape: Figure 1 of Zhang et al. (ICML 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

from adv_train.attacks.judging import progress_bar, suitable_threads
from adv_train.data.dataset import Dataset
from adv_train.data.split import to_unit_range
from adv_train.devices import find_device
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.judged_data import cut
from adv_train.loading import build_model, load_checkpoint, load_data
from adv_train.measures import landscape
from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.runs import Run
from adv_train.plots.surfaces import Around, Surfaces, drawn
from adv_train.threat import Threat
from adv_train.values import Count, Positive, Range, Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@FIGURES.register("landscape")
@dataclass(frozen=True, kw_only=True)
class LossLandscape(Drawing[Surfaces]):
    """Loss around test images, along the loss's gradient and a random direction (Zhang et al., ICML 2022, Figure 1).

    In linf, the first direction is the sign of the gradient and the second has a random sign for each pixel. In l2 and
    l1, they are the gradient and a random direction orthogonal to it, each with norm 1. Images are clamped to their
    range before the model receives them.

    Attributes:
        eps: Unit of both axes, in the norm of training; by default the eps of training.
        range: The axes range from minus to plus this many eps.
        points: Grid points along each axis; an odd number has the clean images in the middle.
        images: Average over so many test images; each class keeps its proportion. 64 by default.
        image: Draw one test image instead of an average: its position in the test split, from 0.
        seed: Seed of the random direction.
        style: Draw a surface or contours.
        checkpoint: Checkpoint of each run: the best on validation, or the last.
        batch_size: Images in a forward pass.
        device: auto, cpu, cuda, cuda:1 or mps.
        data_root: Folder that holds the data sets; by default the folder that training used.
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
    seed: Seed = 0
    style: Literal["surface", "contour"] = "surface"
    checkpoint: Literal["best", "last"] = "best"
    batch_size: Count = 512
    device: str = "auto"
    data_root: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image is not None and self.images is not None:
            raise UserError("--image draws one image, --images the mean over several: leave one of them out.")

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
                f"{run.name}: the gradient of the loss is zero at {found.flat} of {len(x)} images, so they have no "
                "adversarial direction.",
                stacklevel=2,
            )
        return Around(run, saved.epoch, digest(saved.judged)[:16], threat, len(x), found)

    def _chosen(self, dataset: Dataset, device: torch.device) -> Dataset:
        if self.image is None:
            return cut(dataset, self.images or 64, device)
        if self.image >= len(dataset.test):
            raise UserError(f"Test images are numbered 0 to {len(dataset.test) - 1}: there is no image {self.image}.")
        return cut(replace(dataset, test=dataset.test.subset(torch.tensor([self.image]))), None, device)

    def rows(self, numbers: Surfaces) -> list[Row]:
        """Return a row for each run and grid point."""
        return [
            {
                **each.run.about(),
                "checkpoint": f"{self.checkpoint}.pt",
                "epoch": each.epoch,
                "weights": each.weights,
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
        """Draw a panel for each run; all panels have the same scale of the loss."""
        figure = drawn(numbers, flat=self.style == "contour")
        figure.supxlabel(self._caption(numbers), fontsize=9)
        return figure

    def _caption(self, numbers: Surfaces) -> str:
        what = f"test image {self.image}" if self.image is not None else f"mean over {numbers[0].images} test images"
        ranges = sorted({(each.threat.low, each.threat.high) for each in numbers})
        told = " or ".join(f"[{low:g}, {high:g}]" for low, high in ranges)
        return f"{what}; images are clamped to {told}; axes in units of ε"
