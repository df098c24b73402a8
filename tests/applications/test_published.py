"""SVHN, MNIST, Fashion-MNIST and STL-10 from files in their published formats; all published data without a network."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adv_train import data, models
from adv_train.cli import main
from adv_train.data import Augment
from adv_train.errors import UserError
from tests.applications.published_files import (
    TEST,
    TRAIN,
    Written,
    any_checksum,
    network,
    write_fashion_mnist,
    write_mnist,
    write_stl10,
    write_svhn,
)

Write = Callable[[Path], Written]
WRITTEN: list[tuple[str, Write]] = [
    ("svhn", write_svhn),
    ("mnist", write_mnist),
    ("fashion-mnist", write_fashion_mnist),
    ("stl10", write_stl10),
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    network(monkeypatch)
    any_checksum(monkeypatch)


@pytest.mark.parametrize(("name", "write"), WRITTEN)
def test_published_files_are_read_and_a_tenth_validates(name: str, write: Write, tmp_path: Path, offline: None) -> None:
    written = write(tmp_path)
    dataset = data.load(name, root=tmp_path)
    pixels, labels = written["train"]
    position = {image.tobytes(): number for number, image in enumerate(pixels)}
    found = {}
    for split in (dataset.train, dataset.validation):
        where = [position[image.numpy().tobytes()] for image in split.images]
        assert split.labels.tolist() == [labels[number] for number in where]
        assert split.images.dtype == torch.uint8 and split.images.is_contiguous() and split.labels.dtype == torch.int64
        assert where == sorted(where)
        found[split] = where
    assert sorted(number for where in found.values() for number in where) == list(range(TRAIN))
    assert torch.bincount(dataset.validation.labels).tolist() == [TRAIN // 100] * 10
    assert np.array_equal(dataset.test.images.numpy(), written["test"][0])
    assert dataset.test.labels.tolist() == written["test"][1]
    fraction = dataset.train.images.double().numpy() / 255
    np.testing.assert_allclose(dataset.mean, fraction.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, fraction.std((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "write", "shape", "augment", "some_classes"),
    [
        ("svhn", write_svhn, (3, 32), Augment(flip=False), {0: "0", 9: "9"}),
        ("mnist", write_mnist, (1, 28), None, {0: "0", 9: "9"}),
        ("fashion-mnist", write_fashion_mnist, (1, 28), Augment(), {0: "T-shirt/top", 9: "Ankle boot"}),
        ("stl10", write_stl10, (3, 96), Augment(), {0: "airplane", 7: "monkey", 9: "truck"}),
    ],
)
def test_each_has_its_augmentation_and_fits_the_networks(
    name: str,
    write: Write,
    shape: tuple[int, int],
    augment: Augment | None,
    some_classes: dict[int, str],
    tmp_path: Path,
    offline: None,
) -> None:
    write(tmp_path)
    dataset = data.load(name, root=tmp_path)
    assert (dataset.channels, dataset.image_size, dataset.classes) == (*shape, 10)
    assert dataset.augment == augment
    assert {number: dataset.class_names[number] for number in some_classes} == some_classes
    model = models.create("preact-resnet-18", **dataset.model_arguments(), seed=0)
    assert model(dataset.test.images[:2].float() / 255).shape == (2, 10)


def test_the_images_held_out_are_always_the_same(tmp_path: Path, offline: None) -> None:
    pixels, _ = write_mnist(tmp_path)["train"]
    position = {image.tobytes(): number for number, image in enumerate(pixels)}
    held_out = [position[image.numpy().tobytes()] for image in data.load("mnist", root=tmp_path).validation.images]
    # Part of what a published figure means: a new version of a dependency must not move it.
    assert held_out == [16, 27, 30, 44, 78, 95, 100, 102, 103, 104, 117, 119, 126, 128, 133, 141, 152, 175, 181, 189]


@pytest.mark.parametrize(("name", "write"), WRITTEN)
def test_a_limit_cuts_training_and_validation_but_not_test(
    name: str, write: Write, tmp_path: Path, offline: None
) -> None:
    write(tmp_path)
    dataset = data.load(name, root=tmp_path, limit=10)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [10, 10, TEST]
    assert dataset.train.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifar10", ["`cifar-10-python.tar.gz`", "https://www.cs.toronto.edu/~kriz/", "ROOT`", "cifar-10-batches-py`"]),
        ("svhn", ["`train_32x32.mat` and `test_32x32.mat`", "http://ufldl.stanford.edu/housenumbers/", "ROOT`"]),
        ("mnist", ["`train-images-idx3-ubyte.gz`", "`t10k-labels-idx1-ubyte.gz`", "https://", "ROOT/MNIST/raw`"]),
        ("fashion-mnist", ["`train-labels-idx1-ubyte.gz`", "http://fashion-mnist.", "ROOT/FashionMNIST/raw`"]),
        ("stl10", ["`stl10_binary.tar.gz`", "http://ai.stanford.edu/~acoates/stl10/", "ROOT`"]),
        ("gtsrb", ["`GTSRB-Training_fixed.zip`", "`GTSRB_Final_Test_GT.zip`", "https://sid.erda.dk/", "ROOT/gtsrb`"]),
        ("tiny-imagenet", ["`tiny-imagenet-200.zip`", "http://cs231n.stanford.edu/", "ROOT`"]),
    ],
)
def test_without_a_network_one_line_says_what_goes_where(
    name: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = network(monkeypatch)
    with pytest.raises(UserError) as error:
        data.load(name, root=tmp_path)
    message = str(error.value)
    assert "\n" not in message and f"`{name}`" in message and "Name or service not known" in message
    for part in parts:
        assert part.replace("ROOT", str(tmp_path)) in message
    assert any(asked[0].startswith(part) for part in parts)


def test_what_is_downloaded_is_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    written = write_mnist(tmp_path / "written")
    raw = tmp_path / "written" / "MNIST" / "raw"
    archives = {f"{file.name}.gz": gzip.compress(file.read_bytes()) for file in raw.iterdir()}
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
    monkeypatch.setattr(MNIST, "mirrors", ["http://here/"])
    monkeypatch.setattr(MNIST, "resources", sums)
    served = {f"http://here/{name}": content for name, content in archives.items()}

    network(monkeypatch, {address: b"\0" + content for address, content in served.items()})
    with pytest.raises(UserError, match="could not be downloaded"):
        data.load("mnist", root=tmp_path / "data")
    network(monkeypatch, served)
    dataset = data.load("mnist", root=tmp_path / "data")
    assert dataset.test.labels.tolist() == written["test"][1]
    assert network(monkeypatch) == [] and len(data.load("mnist", root=tmp_path / "data").test) == TEST


@pytest.mark.parametrize("left", [0, 3, 1000])
def test_a_file_that_was_cut_off_is_told_in_one_line(left: int, tmp_path: Path, offline: None) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UserError, match=r"`mnist` in .* is missing or damaged") as error:
        data.load("mnist", root=tmp_path)
    assert "\n" not in str(error.value)


def test_a_network_trains_on_them_by_the_command(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")
    run = tmp_path / "run"
    command = ["fit", "--data", "mnist", "--data-root", str(tmp_path / "data"), "--method", "fast-bat", "--epochs", "1"]
    assert main([*command, "--out", str(run), "--quiet"]) == 0
    (record,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(record["loss"])
