"""Test images among the training images: the same, mirrored, saved again; and real images, where there are none."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import adv_train
from adv_train import data
from adv_train.data import Dataset, Split
from adv_train.doctor import Finding, twins
from adv_train.doctor.twins import find_twins
from tests.applications.ill_models import digits, healthy
from tests.applications.real_images import ARCHIVE, write_real_images


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not ARCHIVE.is_file():
        pytest.skip(
            f"{ARCHIVE.name} is not beside the repository, and squares of one photograph do resemble each other"
        )
    folder = tmp_path_factory.mktemp("real")
    write_real_images(folder, train=40, test=20)
    return data.load(f"imagefolder:{folder}", root="")


def leak(dataset: Dataset) -> Finding:
    model = nn.Sequential(nn.Flatten(), nn.Linear(dataset.channels * dataset.image_size**2, dataset.classes))
    return adv_train.doctor(model, dataset, eps=0.03, only=["leak"]).findings["leak"]


def put(into: Split, places: list[int], images: Tensor, labels: Tensor) -> Split:
    changed, named = into.images.clone(), into.labels.clone()
    changed[places], named[places] = images, labels
    return Split(changed, named, into.names)


def as_jpeg(images: Tensor, quality: int) -> Tensor:
    saved = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        saved.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(saved)


def test_real_images_have_no_twins(real: Dataset) -> None:
    for dataset in (digits(), real):
        seen = leak(dataset)
        assert seen.verdict == "well" and seen.figures["twins"] == 0 and seen.figures["n"] == len(dataset.test)


@pytest.mark.parametrize("part", [1000, 8])
def test_twins_are_counted_by_kind_and_named_by_file(real: Dataset, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "_PART", part)  # Images are compared in parts of like brightness.
    train = real.train
    test = put(real.test, [3, 5, 7], train.images[[10, 11, 12]], train.labels[[10, 11, 12]])
    test = put(test, [20, 21], train.images[[30, 31]].flip(-1), (train.labels[[30, 31]] + 1) % real.classes)
    test = put(test, [40, 41, 42, 43], as_jpeg(train.images[[50, 51, 52, 53]], 85), train.labels[[50, 51, 52, 53]])
    test = put(test, [60], as_jpeg(train.images[[60]].flip(-1), 90), train.labels[[60]])
    seen = leak(replace(real, test=test))
    assert seen.verdict == "ill" and seen.figures["twins"] == 10
    kinds = {kind: seen.figures[kind] for kind in ("the same", "mirrored", "nearly the same")}
    assert kinds == {"the same": 3, "mirrored": 2, "nearly the same": 5}
    assert seen.figures["label_conflicts"] == 2 and "2 with another label" in seen.seen
    assert train.names is not None and test.names is not None
    assert f"{test.names[3]} = {train.names[10]}" in seen.seen and seen.seen.endswith("...")
    pairs = {tuple(pair[1:]) for pair in seen.figures["pairs"]}
    assert {(3, 10), (5, 11), (7, 12), (20, 30), (21, 31), (60, 60)} <= pairs


def test_images_as_small_as_thumbnails_are_compared_exactly() -> None:
    train = digits().train
    near = (train.images[[1, 2]] + 1 / 16).clamp(0, 1)
    test = put(digits().test, [0, 1], near, train.labels[[1, 2]])
    assert leak(replace(digits(), test=test)).figures["twins"] == 0
    test = put(test, [8, 9], train.images[[4, 5]], train.labels[[4, 5]])
    seen = leak(replace(digits(), test=put(test, [2], train.images[[3]].flip(-1), train.labels[[3]])))
    assert (seen.figures["the same"], seen.figures["mirrored"], seen.verdict) == (2, 1, "doubtful")
    assert "test[2] = train[3]" in seen.seen


def test_one_in_a_thousand_is_counted_and_no_illness() -> None:
    train = Split(torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    images = torch.randint(256, (1000, 1, 8, 8), dtype=torch.uint8)
    images[17] = train.images[4]
    test = Split(images, torch.zeros(1000, dtype=torch.int64))
    assert [(twin.kind, twin.test, twin.train) for twin in find_twins(train, test)] == [("the same", 17, 4)]
    seen = leak(Dataset("x", train, train, test, ("a", "b"), (0.5,), (0.2,), None))
    assert seen.verdict == "well" and seen.figures["twins"] == 1


def test_flat_images_are_no_twins_of_each_other() -> None:
    level = torch.linspace(0.5, 0.52, 20).view(-1, 1, 1, 1)
    train = Split(level[:10].expand(10, 3, 32, 32).clone(), torch.zeros(10, dtype=torch.int64))
    test = Split(level[10:].expand(10, 3, 32, 32).clone(), torch.zeros(10, dtype=torch.int64))
    assert find_twins(train, test) == []


def test_training_images_may_be_given_beside_tensors_of_test_images(tmp_path: Path) -> None:
    x, y, train = digits().test.images, digits().test.labels, digits().train
    seen = adv_train.doctor(healthy(), x, y, eps=0.1, only=["leak"])
    assert seen.findings["leak"].verdict == "not checked"
    x = torch.cat([x, train.images[:20]])
    y = torch.cat([y, train.labels[:20]])
    seen = adv_train.doctor(healthy(), x, y, eps=0.1, only=["leak"], train=train, limit=50)
    assert seen.findings["leak"].figures["twins"] == 20 and seen.findings["leak"].figures["n"] == 380
