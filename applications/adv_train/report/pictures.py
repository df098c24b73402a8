"""Attacked samples as images inside the page."""

from __future__ import annotations

import base64
import io
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.image import imsave

from adv_train.evaluation import Examples
from adv_train.report.elements import Child, node, table

Picture = npt.NDArray[np.floating]


def gallery(name: str, examples: Examples, eps: float) -> Element:
    """Show each sample in a column: the clean image, what was added, and the sum, with the predicted classes."""
    columns = range(len(examples.label))
    broken = int(np.sum((examples.before == examples.label) & (examples.after != examples.label)))
    rows: list[list[Child]] = [
        ["clean", *(_shown(_image(examples.clean[i]), f"clean image of class {examples.label[i]}") for i in columns)],
        ["seen as", *(_verdict(examples.before[i], examples.label[i]) for i in columns)],
        ["perturbation", *(_shown(_change(examples, i, eps), "perturbation") for i in columns)],
        [
            "attacked",
            *(_shown(_image(examples.adversarial[i]), f"attacked image of {examples.label[i]}") for i in columns),
        ],
        ["seen as", *(_verdict(examples.after[i], examples.label[i]) for i in columns)],
    ]
    heading = node("h3", name, node("span", f"{broken} of {len(columns)} broken", class_="note"))
    header = ["true class", *(str(examples.label[i]) for i in columns)]
    return node("section", heading, table(header, rows, class_="gallery"))


def _verdict(predicted: np.int64, label: np.int64) -> Element:
    # A mark as well as a colour, for those who do not see the colour.
    right = predicted == label
    said = "no class" if predicted < 0 else str(predicted)
    return node("span", f"{said} {'✓' if right else '✗'}", class_="right" if right else "wrong")


def _shown(png: bytes, alt: str) -> Element:
    return node("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=alt)


def _change(examples: Examples, index: int, eps: float) -> bytes:
    """Draw a perturbation on its whole range -eps to eps: in grey images red is darker and blue is brighter."""
    change = (examples.adversarial[index] - examples.clean[index]) / (2 * eps if eps > 0 else 1) + 0.5
    if len(change) == 3:
        return _image(change)
    return _image(colormaps["RdBu"](change.mean(0))[..., :3].transpose(2, 0, 1))


def _image(pixels: Picture) -> bytes:
    """Encode an image ``(C, H, W)`` as PNG: three channels as they are, any other number as the grey of their mean."""
    colours = pixels if len(pixels) == 3 else pixels.mean(0, keepdims=True).repeat(3, axis=0)
    buffer = io.BytesIO()
    imsave(buffer, colours.transpose(1, 2, 0).clip(0, 1), format="png")
    return buffer.getvalue()
