"""Images that take more than half of the memory of the machine, or of an accelerator."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from PIL import Image

from adv_train import data
from adv_train.data import Dataset, Mixup, batches
from adv_train.data.large import only_rows
from adv_train.data.read_images import read_images
from adv_train.errors import UserError

SIDE, IMAGES = 8, 40
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, first in (("a", 0), ("b", 100)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(first, first + IMAGES // 2):
            Image.new("RGB", (SIDE, SIDE), (number, 100, 200)).save(folder / f"{number:03}.png")
    return tmp_path / "photos"


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one byte less than twice the size of the photos."""
    memory = {"SC_PHYS_PAGES": 2 * IMAGES * 3 * SIDE * SIDE - 1, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr("os.sysconf", memory.__getitem__, raising=False)


def load(photos: Path, *, skip_unreadable: bool = False) -> Dataset:
    root = photos.parent / "root"
    return data.load(f"imagefolder:{photos}", root=root, size=SIDE, skip_unreadable=skip_unreadable)


def stored(photos: Path) -> list[Path]:
    return sorted((photos.parent / "root").rglob("*"))[1:]  # without the folder of the files


def require_equal(found: Dataset, expected: Dataset) -> None:
    assert (found.mean, found.std, found.class_names) == (expected.mean, expected.std, expected.class_names)
    for name in ("train", "validation", "test"):
        split, other = getattr(found, name), getattr(expected, name)
        assert torch.equal(split.images, other.images) and torch.equal(split.labels, other.labels)
        assert split.names == other.names


def test_they_are_decoded_once_into_a_file(
    photos: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = load(photos)
    assert stored(photos) == []
    request.getfixturevalue("small_machine")
    require_equal(load(photos), in_memory)
    (file,) = stored(photos)
    assert file.stat().st_size == IMAGES * 3 * SIDE * SIDE
    monkeypatch.setattr("adv_train.data.read_images.decode", lambda *_, **__: pytest.fail("a file was decoded again"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10, 9, 1))  # the file is there and needs no more room
    require_equal(load(photos), in_memory)
    file.write_bytes(b"short")
    with pytest.raises(UserError, match="Delete it"):
        load(photos)


@pytest.mark.usefixtures("small_machine")
def test_other_content_has_another_file(photos: Path) -> None:
    load(photos)
    Image.new("RGB", (SIDE, SIDE), (7, 7, 7)).save(photos / "a" / "000.png")
    colours = {tuple(image[:, 0, 0].tolist()) for image in load(photos).train.images}
    assert len(stored(photos)) == 2 and (0, 100, 200) not in colours


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("number", [0, 9, 19])
def test_files_that_cannot_be_read_are_left_out(photos: Path, number: int) -> None:
    (photos / "a" / f"{number:03}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="cannot be read"):
        load(photos)
    with pytest.warns(UserWarning, match="1 of 40 files"):
        found = load(photos, skip_unreadable=True)
    assert stored(photos) == []  # the skipped files are not known from the images, so these are decoded again
    for split in (found.train, found.validation, found.test):
        assert split.names is not None
        assert [int(Path(name).stem) for name in split.names] == split.images[:, 0, 0, 0].tolist()


@pytest.mark.usefixtures("small_machine")
def test_a_full_disk_is_reported_before_decoding(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(UserError, match=r"40 images of 8x8 pixels.*--data-root on another disk"):
        load(photos)
    assert not (photos.parent / "root").exists()


@pytest.mark.usefixtures("small_machine")
def test_without_a_file_they_must_fit_into_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(photos.rglob("*.png"))
    assert read_images(files).shape == (IMAGES, 3, SIDE, SIDE)
    memory = {"SC_PHYS_PAGES": IMAGES * 3 * SIDE * SIDE - 1, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr("os.sysconf", memory.__getitem__, raising=False)
    with pytest.raises(UserError, match="but the machine has"):
        read_images(files)


def test_rows_are_moved_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adv_train.data.large._ROWS", 3)
    images, kept = torch.arange(20), torch.rand(20, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = images[kept]
    found = only_rows(images, kept)
    assert torch.equal(found, expected) and found.data_ptr() == images.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_images_on_the_host_give_the_batches_of_images_on_the_device(
    photos: Path, monkeypatch: pytest.MonkeyPatch, alpha: float | None
) -> None:
    dataset, found = load(photos), []
    for free in (2**30, 1):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, free))
        split = dataset.to("cuda").train
        assert (split.images.device.type, split.labels.device.type) == ("cuda" if free > 1 else "cpu", "cuda")
        generator = data.epoch_generator(0, 0, "cuda")
        mixup = None if alpha is None else Mixup(alpha, 0, 0)
        found.append([*batches(split, 8, generator=generator, augment=dataset.augment, mixup=mixup)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y) and torch.equal(one.index, other.index)
