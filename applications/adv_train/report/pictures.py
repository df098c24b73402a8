"""Attacked samples as images inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.image import imsave

from adv_train.evaluation import Examples

Picture = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Seen:
    """What a model takes an image for: the name of the class, and whether it is the true one."""

    name: str
    right: bool


@dataclass(frozen=True)
class Column:
    """One sample: its true class, three pictures as ``data:`` addresses, and what the model says before and after."""

    label: str
    clean: str
    before: Seen
    change: str
    adversarial: str
    after: Seen


@dataclass(frozen=True)
class Gallery:
    """The samples of a run, and how many of those that were right were broken."""

    name: str
    broken: int
    columns: Sequence[Column]


def gallery(name: str, examples: Examples, span: float | None = None, class_names: Sequence[str] = ()) -> Gallery:
    """Show each sample in a column: the clean image, what was added, and the sum, with the predicted classes.

    Args:
        name: Of the run.
        examples: The samples.
        span: The largest change of a pixel that is drawn; by default that of the sample.
        class_names: In the order of the labels.
    """

    def called(label: np.int64) -> str:
        if label < 0:
            return "no class"
        return class_names[int(label)] if label < len(class_names) else str(label)

    def seen(predicted: np.int64, label: np.int64) -> Seen:
        return Seen(called(predicted), bool(predicted == label))

    columns = [
        Column(
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
    return Gallery(name, broken, columns)


def address(png: bytes) -> str:
    """Give a picture as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _change(examples: Examples, index: int, span: float | None) -> bytes:
    """Draw a perturbation on its whole range: in grey images red is darker and blue is brighter."""
    change = examples.adversarial[index] - examples.clean[index]
    span = float(abs(change).max()) if span is None else span
    change = change / (2 * span if span > 0 else 1) + 0.5
    if len(change) == 3:
        return _image(change)
    return _image(colormaps["RdBu"](change.mean(0))[..., :3].transpose(2, 0, 1))


def _image(pixels: Picture) -> bytes:
    """Encode an image ``(C, H, W)`` as PNG: three channels as they are, any other number as the grey of their mean."""
    colours = pixels if len(pixels) == 3 else pixels.mean(0, keepdims=True).repeat(3, axis=0)
    buffer = io.BytesIO()
    imsave(buffer, colours.transpose(1, 2, 0).clip(0, 1), format="png")
    return buffer.getvalue()
