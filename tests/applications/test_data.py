"""The data sets by name: digits, and what holds for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from adv_train import data, models
from adv_train.data.statistics import channel_statistics
from adv_train.errors import UserError


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", root="unused")


def test_digits_are_scikit_learns_in_the_unit_range(digits: data.Dataset) -> None:
    """Every image of the source is in exactly one split, with its label."""
    bunch = load_digits()
    source = sorted((*image.ravel(), label) for image, label in zip(bunch.images, bunch.target, strict=True))
    splits = (digits.train, digits.validation, digits.test)
    found = sorted(
        (*(image.double().numpy().ravel() * 16), label)
        for split in splits
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )
    assert found == source
    assert [len(split) for split in splits] == [1257, 180, 360]
    assert all(split.images.dtype == torch.float32 and split.labels.dtype == torch.int64 for split in splits)
    assert digits.train.images.shape[1:] == (1, 8, 8)
    assert (digits.classes, digits.channels, digits.image_size, digits.augment) == (10, 1, 8, None)


def test_digits_are_read_without_importing_scikit_learn_if_their_file_is_at_its_place(
    digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; from adv_train import data; data.load('digits', root=''); print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
    monkeypatch.setattr("adv_train.data.digits.find_spec", lambda name: None)
    imported = data.load("digits", root="")
    assert torch.equal(imported.train.images, digits.train.images)
    assert torch.equal(imported.train.labels, digits.train.labels)


def test_digits_keep_every_class_in_proportion(digits: data.Dataset) -> None:
    share = np.bincount(load_digits().target) / 1797
    for split in (digits.train, digits.validation, digits.test):
        counts = np.bincount(split.labels.numpy())
        assert np.abs(counts - share * len(split)).max() <= 2


def test_digits_are_always_split_alike(digits: data.Dataset) -> None:
    again = data.load("digits", root="elsewhere")
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(again, split).images, getattr(digits, split).images)
    # The split is part of what a published figure means: a new version of a dependency must not move it.
    weights = torch.arange(360, dtype=torch.float64) + 1
    fingerprint = float((digits.test.images.double().mean((1, 2, 3)) * 1024) @ weights)
    assert fingerprint == 20018752.0


def test_a_limit_cuts_training_and_validation_but_never_test(digits: data.Dataset) -> None:
    cut = data.load("digits", root="unused", limit=200)
    assert [len(split) for split in (cut.train, cut.validation, cut.test)] == [200, 180, 360]
    assert torch.bincount(cut.train.labels).tolist() == pytest.approx([20] * 10, abs=1)
    assert torch.equal(cut.test.images, digits.test.images)
    everything = {image.numpy().tobytes() for image in digits.train.images}
    assert all(image.numpy().tobytes() in everything for image in cut.train.images)
    assert len(data.load("digits", root="unused", limit=20).validation) == 20


def test_digits_statistics_are_those_of_the_training_split(digits: data.Dataset) -> None:
    pixels = digits.train.images.double().numpy()
    assert digits.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert digits.std == pytest.approx([pixels.std()], rel=1e-12)


@pytest.mark.parametrize("name", models.MODELS.names())
def test_a_data_set_says_what_a_model_needs(digits: data.Dataset, name: str) -> None:
    arguments = json.loads(json.dumps(digits.model_arguments()))
    with torch.device("meta"):
        model = models.MODELS.find(name)(**arguments)
        assert model(torch.empty_like(digits.test.images[:3], device="meta")).shape == (3, 10)


def test_a_data_set_moves_whole(digits: data.Dataset) -> None:
    moved = digits.to("meta")
    assert all(
        tensor.device.type == "meta"
        for split in (moved.train, moved.validation, moved.test)
        for tensor in (split.images, split.labels)
    )
    assert moved.mean == digits.mean


@pytest.mark.parametrize("n", [1, 50])
def test_statistics_of_bytes_are_exact(n: int) -> None:
    images = torch.randint(256, (n, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_channel_without_contrast_does_not_divide_by_zero(dtype: torch.dtype) -> None:
    images = torch.ones(4, 1, 3, 3, dtype=dtype)
    assert channel_statistics(images)[1] == (1 / 255,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "Unknown data set `digit`. Did you mean `digits`.*Valid names: cifar10, cifar100"),
        ("CIFAR-10", "Did you mean `cifar10`"),
        ("", "Unknown data set"),
        ("cifar10:x", "Unknown data set"),
        ("imagefolder", "Write `imagefolder:PATH`"),
        ("imagefolder:", "Write `imagefolder:PATH`"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        data.load(name, root=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("limit", [1, 0, -5])
def test_a_limit_too_small_to_train_on_is_refused(limit: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"at least 2, but is {limit}"):
        data.load("digits", root=tmp_path, limit=limit)
