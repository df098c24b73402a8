"""Small data sets in the formats in which the published ones come, and a network that is down or serves files."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

Pixels = NDArray[np.uint8]  # (n, channels, height, width)
Written = dict[str, tuple[Pixels, list[int]]]
#: Images that are written to train on, and to test.
TRAIN, TEST = 200, 30
#: WordNet ids out of order, as the real file has them, each with its line of words.txt.
WNIDS = {"n04067472": "reel", "n02124075": "Egyptian cat", "n09246464": "cliff, drop, drop-off"}


def network(monkeypatch: pytest.MonkeyPatch, served: Mapping[str, bytes] | None = None) -> list[str]:
    """Replace the network by files; return the list of addresses that will be asked for.

    Args:
        monkeypatch: Of the test.
        served: Content by address; everything else cannot be reached.
    """
    asked: list[str] = []

    class Answer(io.BytesIO):
        def __init__(self, url: str, content: bytes) -> None:
            super().__init__(content)
            self.url, self.length = url, len(content)

    def urlopen(request: Any) -> Answer:
        asked.append(request.full_url)
        if request.full_url not in (served or {}):
            raise URLError("Name or service\nnot known")
        return Answer(request.full_url, (served or {})[request.full_url])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept the small files of these tests in place of the published ones."""
    for module in ("cifar", "svhn", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5: os.path.isfile(path))


def write_svhn(root: Path) -> Written:
    written = _random(3, 32)
    for split, (pixels, digits) in written.items():
        labels = np.array([digit or 10 for digit in digits], dtype=np.uint8)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": pixels.transpose(2, 3, 1, 0), "y": labels})
    return written


def write_mnist(root: Path) -> Written:
    return _write_idx(root / "MNIST" / "raw")


def write_fashion_mnist(root: Path) -> Written:
    return _write_idx(root / "FashionMNIST" / "raw")


def _write_idx(folder: Path) -> Written:
    folder.mkdir(parents=True)
    written = _random(1, 28)
    for split, (pixels, labels) in written.items():
        start = folder / ("train" if split == "train" else "t10k")
        head = struct.pack(">IIII", 0x803, len(pixels), 28, 28)
        Path(f"{start}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        Path(f"{start}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))
    return written


def write_stl10(root: Path) -> Written:
    folder = root / "stl10_binary"
    folder.mkdir()
    written = _random(3, 96)
    for split, (pixels, labels) in written.items():
        (folder / f"{split}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())  # column by column
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    return written


def write_gtsrb(root: Path, *, tracks: int = 10, frames: int = 2) -> None:
    """Write images of one colour: (class, track, frame) to train on; one a class to test, whose green is 255."""
    fit, test = root / "gtsrb" / "GTSRB" / "Training", root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    tests = []
    for label in range(43):
        folder = fit / f"{label:05}"
        folder.mkdir(parents=True)
        rows = []
        for track in range(tracks):
            for frame in range(frames):
                name, size = f"{track:05}_{frame:05}.ppm", (15 + label, 20 + frame)
                write_ppm(folder / name, np.full((*size, 3), (label, track, frame), dtype=np.uint8))
                rows.append((name, label))
        _write_table(folder / f"GT-{label:05}.csv", rows)
        name = f"{(label * 5) % 43:05}.ppm"  # in another order than the classes
        write_ppm(test / name, np.full((40, 33, 3), (label, 255, 0), dtype=np.uint8))
        tests.append((name, label))
    _write_table(root / "gtsrb" / "GT-final_test.csv", sorted(tests))


def write_ppm(file: Path, pixels: NDArray[np.uint8]) -> None:
    file.write_bytes(f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode() + pixels.tobytes())


def _write_table(file: Path, rows: list[tuple[str, int]]) -> None:
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    lines += [f"{name};40;33;5;5;35;28;{label}" for name, label in rows]
    file.write_text("\r\n".join(lines) + "\r\n", newline="")


def write_tiny_imagenet(root: Path, *, train: int = 4, val: int = 6) -> Path:
    """Write JPEG images of 64x64 random pixels; every third is grey. ``train`` and ``val``: images of each class."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    words = {"n00001740": "entity", **WNIDS}
    (folder / "words.txt").write_text("".join(f"{wnid}\t{word}\n" for wnid, word in words.items()))
    for wnid in WNIDS:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        names = [f"{wnid}_{number}.JPEG" for number in range(train)]
        for number, name in enumerate(names):
            _write_jpeg(folder / "train" / wnid / "images" / name, number)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(f"{name}\t0\t0\t9\t9\n" for name in names))
    lines = []
    for number in range(val * len(WNIDS)):
        _write_jpeg(folder / "val" / "images" / f"val_{number}.JPEG", number)
        lines.append(f"val_{number}.JPEG\t{list(WNIDS)[number % len(WNIDS)]}\t0\t0\t9\t9\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def _write_jpeg(file: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if number % 3 == 0 else pixels).save(file)


def _random(channels: int, side: int) -> Written:
    numbers = np.random.default_rng(side)
    return {
        split: (
            numbers.integers(0, 256, (count, channels, side, side), dtype=np.uint8),
            (np.arange(count) * 7 % 10).tolist(),
        )
        for split, count in (("train", TRAIN), ("test", TEST))
    }
