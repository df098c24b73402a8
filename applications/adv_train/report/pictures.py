"""Show attacked samples as images in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adv_train.evaluation import Examples

Picture = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Seen:
    """The prediction for an image: the name of the class, and whether it is the true one."""

    name: str
    right: bool


@dataclass(frozen=True)
class Sample:
    """One sample: its true class, three images as ``data:`` URLs, and the predictions before and after the attack."""

    label: str
    clean: str
    before: Seen
    change: str
    adversarial: str
    after: Seen


@dataclass(frozen=True)
class Gallery:
    """The samples of a run, and how many correct predictions the attacks changed."""

    name: str
    broken: int
    samples: Sequence[Sample]


def gallery(name: str, examples: Examples, span: float | None = None, class_names: Sequence[str] = ()) -> Gallery:
    """Show for each sample the clean image, the perturbation and their sum, with the predicted classes.

    Args:
        name: Name of the run.
        examples: The samples.
        span: Change of a pixel at the ends of the colour scale; by default the largest change in the sample.
        class_names: Names of the classes, in the order of the labels.
    """

    def called(label: np.int64) -> str:
        if label < 0:
            return "no class"
        return class_names[int(label)] if label < len(class_names) else str(label)

    def seen(predicted: np.int64, label: np.int64) -> Seen:
        return Seen(called(predicted), bool(predicted == label))

    samples = [
        Sample(
            label=called(examples.label[i]),
            clean=address(_image(examples.clean[i])),
            before=seen(examples.before[i], examples.label[i]),
            change=address(_change(examples, i, span)),
            adversarial=address(_image(examples.adversarial[i])),
            after=seen(examples.after[i], examples.label[i]),
        )
        for i in range(len(examples.label))
    ]
    broken = int(np.sum((examples.before == examples.label) & (examples.after != examples.label)))
    return Gallery(name, broken, samples)


def address(png: bytes) -> str:
    """Return a PNG as a ``data:`` URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _change(examples: Examples, index: int, span: float | None) -> bytes:
    """Draw a perturbation scaled by `span`; for grey images, red means darker and blue means brighter."""
    change = examples.adversarial[index] - examples.clean[index]
    span = float(abs(change).max()) if span is None else span
    change = change / (2 * span if span > 0 else 1) + 0.5
    if len(change) == 3:
        return _image(change)
    from matplotlib import colormaps  # Not at the top: only drawing needs matplotlib.

    return _image(colormaps["RdBu"](change.mean(0))[..., :3].transpose(2, 0, 1))


def _image(pixels: Picture) -> bytes:
    """Encode an image ``(C, H, W)`` as PNG; an image without exactly three channels becomes the grey of their mean."""
    from matplotlib.image import imsave  # Not at the top: only drawing needs matplotlib.

    colours = pixels if len(pixels) == 3 else pixels.mean(0, keepdims=True).repeat(3, axis=0)
    buffer = io.BytesIO()
    imsave(buffer, colours.transpose(1, 2, 0).clip(0, 1), format="png")
    return buffer.getvalue()
