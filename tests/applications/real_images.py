"""A few real images: of the CIFAR-10 archive that may lie beside the repository, else of scikit-learn's photographs."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"
#: Ten of Tiny-ImageNet's classes, likewise.
TINY_IMAGENET = ARCHIVE.with_name("tiny-imagenet-10.tar.xz")
_SIDE = 32


def write_real_images(into: Path, *, train: int, test: int) -> None:
    """Write images of 32x32 pixels in ten classes as ``train/<class>/NNNN.jpg`` and ``test/<class>/NNNN.jpg``.

    Args:
        into: An empty folder.
        train: Images of each class to train on.
        test: Images of each class to test on.
    """
    keep = {"train": train, "test": test}
    if not ARCHIVE.is_file():
        _cut_photographs(into, keep)
        return
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and int(path.stem) < keep[path.parts[0]]:
                archive.extract(member, into, filter="data")


def _cut_photographs(into: Path, keep: dict[str, int]) -> None:
    """Cut squares out of two photographs; a class is a fifth of one, from left to right."""
    random = np.random.default_rng(0)
    for photograph in ("china.jpg", "flower.jpg"):
        pixels = load_sample_image(photograph)
        height, width = pixels.shape[0], pixels.shape[1] // 5
        for part in range(5):
            strip = pixels[:, part * width : (part + 1) * width]
            for split, count in keep.items():
                folder = into / split / f"{photograph.removesuffix('.jpg')}-{part}"
                folder.mkdir(parents=True)
                for number in range(count):
                    top, left = random.integers(height - _SIDE), random.integers(width - _SIDE)
                    square = strip[top : top + _SIDE, left : left + _SIDE]
                    Image.fromarray(square).save(folder / f"{number:04}.jpg", quality=95)
