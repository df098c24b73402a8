"""Tiny-ImageNet in its original layout: from files of these tests, and ten real classes where they are at hand."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adv_train import data
from adv_train.cli import main
from adv_train.data import Augment, Dataset
from adv_train.errors import UserError
from tests.applications.published_files import WNIDS, network, write_tiny_imagenet
from tests.applications.real_images import TINY_IMAGENET


def check_against_the_files(dataset: Dataset, folder: Path, wnids: list[str], every: int = 1) -> None:
    """Compare pixels with Pillow's, and labels with the tables; ``every``: so many images one is looked at."""
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    annotated = dict(line.split("\t")[:2] for line in lines)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.names is not None and split.images.dtype == torch.uint8
        triples = zip(split.images, split.labels.tolist(), split.names, strict=True)
        for image, label, name in list(triples)[::every]:
            path = Path(name)
            wnid = path.parts[1] if split is dataset.train else annotated[path.name]
            assert sorted(wnids)[label] == wnid
            with Image.open(folder / path) as opened:
                assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(opened.convert("RGB")))


def test_val_is_halved_class_by_class(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    dataset = data.load("tiny-imagenet", root=tmp_path)
    check_against_the_files(dataset, folder, list(WNIDS))
    assert torch.bincount(dataset.train.labels).tolist() == [4] * 3
    for split in (dataset.validation, dataset.test):
        assert torch.bincount(split.labels).tolist() == [3] * 3
    assert dataset.validation.names and dataset.test.names
    names = {*dataset.validation.names, *dataset.test.names}
    assert names == {f"val/images/val_{number}.JPEG" for number in range(18)}
    # Part of what a published figure means: a new version of a dependency must not move it.
    assert [int(name.split("_")[1].split(".")[0]) for name in dataset.validation.names] == [
        1,
        2,
        8,
        9,
        10,
        11,
        12,
        15,
        16,
    ]


def test_it_is_what_the_published_code_trains_on(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    dataset = data.load("tiny-imagenet", root=tmp_path)
    assert dataset.class_names == ("Egyptian cat", "reel", "cliff")
    assert (dataset.channels, dataset.image_size, dataset.augment) == (3, 64, Augment(padding=4, flip=True))
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert [len(split) for split in _splits(data.load("tiny-imagenet", root=tmp_path, limit=6))] == [6, 6, 9]


def test_the_archive_is_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_imagenet(tmp_path / "written")
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "written"))
    served = {"http://cs231n.stanford.edu/tiny-imagenet-200.zip": archive.read_bytes()}
    network(monkeypatch, served)
    with pytest.raises(UserError, match="could not be downloaded"):  # of another checksum than the published file
        data.load("tiny-imagenet", root=tmp_path / "data")
    assert not (tmp_path / "data" / "tiny-imagenet-200").exists()
    monkeypatch.setattr("adv_train.data.tiny_imagenet._MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(data.load("tiny-imagenet", root=tmp_path / "data").train) == 12
    # What an interrupted unpacking lacks is unpacked again from the archive, without a network.
    table = tmp_path / "data" / "tiny-imagenet-200" / "train" / "n02124075" / "n02124075_boxes.txt"
    for damage in (table.unlink, lambda: table.write_text("")):
        damage()
        asked = network(monkeypatch)
        assert len(data.load("tiny-imagenet", root=tmp_path / "data").train) == 12 and not asked


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "images" / "val_3.JPEG").unlink()
    (folder / "train" / "n04067472" / "images" / "n04067472_1.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 30 files .*n04067472_1\.JPEG.*val_3\.JPEG.*Remove `.*-200`") as error:
        data.load("tiny-imagenet", root=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lines", ["val_0.JPEG\tn00000000\t0\t0\t9\t9\n", "val_0.JPEG\n", ""])
def test_a_table_of_another_kind_is_refused(lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(monkeypatch)
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").write_text(lines)
    with pytest.raises(UserError, match=r"`tiny-imagenet` in .* is missing or damaged"):
        data.load("tiny-imagenet", root=tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not TINY_IMAGENET.is_file():
        pytest.skip(f"{TINY_IMAGENET.name}, ten classes of the real images, is not beside the repository")
    root = tmp_path_factory.mktemp("real")
    with tarfile.open(TINY_IMAGENET) as archive:
        archive.extractall(root, filter="data")
    yield root
    shutil.rmtree(root)


def test_ten_real_classes(real: Path) -> None:
    folder = real / "tiny-imagenet-200"
    dataset = data.load("tiny-imagenet", root=real)
    check_against_the_files(dataset, folder, (folder / "wnids.txt").read_text().split(), every=9)
    assert [torch.bincount(split.labels).tolist() for split in _splits(dataset)] == [[500] * 10, [25] * 10, [25] * 10]
    assert {"Egyptian cat", "bullfrog", "rocking chair", "espresso"} < set(dataset.class_names)
    grey = (dataset.train.images[:, :1] == dataset.train.images).all((1, 2, 3)).sum()
    assert 0 < grey < 500


def test_an_epoch_on_real_images_by_the_command(real: Path, tmp_path: Path) -> None:
    command = ["fit", "--data", "tiny-imagenet", "--data-root", str(real), "--method", "fast-at", "--epochs", "1"]
    command += ["--model", "small-cnn", "--train-limit", "128", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 0
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(record["loss"])


def _splits(dataset: Dataset) -> tuple[data.Split, ...]:
    return dataset.train, dataset.validation, dataset.test
