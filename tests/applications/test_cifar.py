"""CIFAR-10 and CIFAR-100 from files in their published format."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adv_train import data
from adv_train.data import Augment
from adv_train.errors import UserError
from tests.applications.test_checkpoint import Hostile

TRAIN, TEST = 5_100, 60
Pixels = NDArray[np.uint8]


def offline(*args: object, **kwargs: object) -> None:
    raise URLError("Name or service\nnot known")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    """Accept the small files of these tests in place of the published ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: os.path.isfile(path))


def random_rows(n: int, classes: int) -> tuple[Pixels, list[int]]:
    numbers = np.random.default_rng(n)
    return numbers.integers(0, 256, (n, 3072), dtype=np.uint8), numbers.integers(0, classes, n).tolist()


def dump(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root: Path) -> dict[str, tuple[Pixels, list[int]]]:
    folder = root / "cifar-10-batches-py"
    written = {"train": random_rows(TRAIN, 10), "test": random_rows(TEST, 10)}
    pixels, labels = written["train"]
    for number in range(5):
        part = slice(number * TRAIN // 5, (number + 1) * TRAIN // 5)
        dump(folder / f"data_batch_{number + 1}", {"data": pixels[part], "labels": labels[part]})
    dump(folder / "test_batch", {"data": written["test"][0], "labels": written["test"][1]})
    dump(folder / "batches.meta", {"label_names": [f"kind {i}" for i in range(10)], "num_vis": 3072})
    return written


def write_cifar100(root: Path) -> dict[str, tuple[Pixels, list[int]]]:
    folder = root / "cifar-100-python"
    written = {"train": random_rows(TRAIN, 100), "test": random_rows(TEST, 100)}
    for name, (pixels, labels) in written.items():
        coarse = [label // 5 for label in labels]
        dump(folder / name, {"data": pixels, "fine_labels": labels, "coarse_labels": coarse})
    names = {"fine_label_names": [f"kind {i}" for i in range(100)], "coarse_label_names": ["?"] * 20}
    dump(folder / "meta", names)
    return written


@pytest.mark.parametrize(
    ("name", "write", "classes", "augment"),
    [
        ("cifar10", write_cifar10, 10, Augment(padding=4, flip=True, rotation=0.0)),
        ("cifar100", write_cifar100, 100, Augment(padding=4, flip=True, rotation=15.0)),
    ],
)
def test_the_published_files_are_read_and_the_last_5000_validate(
    name: str, write: Any, classes: int, augment: Augment, tmp_path: Path, any_checksum: None
) -> None:
    written = write(tmp_path)
    dataset = data.load(name, root=tmp_path)
    (pixels, labels), (test_pixels, test_labels) = written["train"], written["test"]
    # A row holds the red plane, then the green, then the blue, each line by line.
    for split, rows, targets in (
        (dataset.train, pixels[:-5000], labels[:-5000]),
        (dataset.validation, pixels[-5000:], labels[-5000:]),
        (dataset.test, test_pixels, test_labels),
    ):
        assert split.images.dtype == torch.uint8 and split.images.is_contiguous()
        assert np.array_equal(split.images.numpy(), rows.reshape(-1, 3, 32, 32))
        assert split.labels.tolist() == targets
    assert dataset.class_names == tuple(f"kind {i}" for i in range(classes))
    assert (dataset.classes, dataset.channels, dataset.image_size) == (classes, 3, 32)
    assert dataset.augment == augment


def test_a_limit_cuts_the_training_files(tmp_path: Path, any_checksum: None) -> None:
    write_cifar10(tmp_path)
    dataset = data.load("cifar10", root=str(tmp_path), limit=40)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [40, 40, TEST]


@pytest.mark.parametrize(
    ("name", "archive", "folder"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
    ],
)
def test_offline_the_message_says_where_the_files_go(
    name: str, archive: str, folder: str, tmp_path: Path, no_network: None
) -> None:
    with pytest.raises(UserError) as error:
        data.load(name, root=tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in (name, str(tmp_path), archive, f"https://www.cs.toronto.edu/~kriz/{archive}", folder):
        assert part in message
    assert "Name or service not known" in message


def test_files_with_another_checksum_are_never_opened(tmp_path: Path, no_network: None) -> None:
    write_cifar10(tmp_path)
    trace = tmp_path / "trace"
    for file in (tmp_path / "cifar-10-batches-py").iterdir():
        file.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(UserError, match="could not be downloaded"):
        data.load("cifar10", root=tmp_path)
    assert not trace.exists()
