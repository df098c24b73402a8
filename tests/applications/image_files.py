"""Image files in formats that Pillow does not write, and small pictures of digits in formats that cameras write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

Levels = NDArray[np.uint16]


def png_16(levels: Levels) -> bytes:
    """A PNG of 16 bits a channel. ``levels``: (height, width), or (height, width, channels) with 2 to 4 channels."""
    height, width = levels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if levels.ndim == 2 else levels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_16(
    levels: Levels, *, order: str = "<", deflated: bool = False, white_is_zero: bool = False, planes: bool = False
) -> bytes:
    """A TIFF of 16 bits a channel. ``levels``: (height, width), or (height, width, 3 or 4); ``order``: of bytes."""
    height, width = levels.shape[:2]
    channels = 1 if levels.ndim == 2 else levels.shape[2]
    strips = [part.astype(f"{order}u2").tobytes() for part in (levels.transpose(2, 0, 1) if planes else [levels])]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    tags = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [16] * channels),
        (259, "H", [8 if deflated else 1]),
        (262, "H", [2 if channels > 1 else int(not white_is_zero)]),
        (273, "I", [0] * len(strips)),  # where the pixels are: below
        (277, "H", [channels]),
        (278, "H", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if planes else 1]),
    ]
    if channels == 4:
        tags.append((338, "H", [2]))
    end = 8 + 2 + 12 * len(tags) + 4
    outside, entries = b"", []
    sizes = [len(values) * struct.calcsize(f"{order}{kind}") for _, kind, values in tags]
    start = end + sum(size for size in sizes if size > 4)
    for (tag, kind, values), size in zip(tags, sizes, strict=True):
        if tag == 273:
            values = [start + sum(map(len, strips[:i])) for i in range(len(strips))]
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if size > 4:
            packed, outside = struct.pack(f"{order}I", end + len(outside)), outside + packed
        entries.append(struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + packed.ljust(4, b"\0"))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    return head + b"".join(entries) + struct.pack(f"{order}I", 0) + outside + b"".join(strips)


def write_digit_photos(into: Path, *, train: int, test: int, side: int = 16) -> None:
    """Write pictures of scikit-learn's digits as ``train/<digit>/NNNN.*`` and ``test/<digit>/NNNN.*``.

    Ink of one colour on paper of another; JPEG, PNG and WebP in turns.

    Args:
        into: An empty folder.
        train: Pictures of each digit to train on.
        test: Pictures of each digit to test on.
        side: Of the pictures in pixels.
    """
    bunch = load_digits()
    generator = np.random.default_rng(0)
    for digit in range(10):
        strokes = bunch.images[bunch.target == digit][: train + test] / 16
        for number, stroke in enumerate(strokes):
            ink, paper = generator.uniform(0, 100, 3), generator.uniform(155, 255, 3)
            picture = (stroke[..., None] * ink + (1 - stroke[..., None]) * paper).astype(np.uint8)
            split, place = ("train", number) if number < train else ("test", number - train)
            folder = into / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            suffix = (".jpg", ".png", ".webp")[number % 3]
            Image.fromarray(picture).resize((side, side)).save(folder / f"{place:04}{suffix}")
