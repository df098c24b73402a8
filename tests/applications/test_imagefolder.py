"""Folders of images, from files that Pillow writes and from real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adv_train import data
from adv_train.data import Augment, Dataset, Split
from adv_train.errors import UserError
from tests.applications.real_images import unpack_cifar10_jpeg


def write(folder: Path, numbers: range, mode: str = "RGB", size: tuple[int, int] = (6, 6)) -> None:
    """Write images of one colour, whose red value is their number, so that an image tells where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", size, (number, 100, 200)).convert(mode).save(folder / f"{number:03}.png")


def load(path: Path, limit: int | None = None) -> Dataset:
    return data.load(f"imagefolder:{path}", root="unused", limit=limit)


def reds(split: Split) -> list[int]:
    assert (split.images == split.images[:, :, :1, :1]).all()
    return split.images[:, 0, 0, 0].tolist()


def test_class_folders_are_split_in_three(tmp_path: Path) -> None:
    write(tmp_path / "b", range(0, 60))
    write(tmp_path / "a", range(100, 140))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    dataset = load(tmp_path)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [torch.bincount(split.labels).tolist() for split in splits] == [[32, 49], [4, 5], [4, 6]]
    assert sorted(red for split in splits for red in reds(split)) == [*range(60), *range(100, 140)]
    for split in splits:
        assert split.labels.tolist() == [0 if red >= 100 else 1 for red in reds(split)]
        assert split.images.shape[1:] == (3, 6, 6) and split.images.dtype == torch.uint8
    assert dataset.class_names == ("a", "b") and dataset.augment == Augment()
    assert reds(load(tmp_path).train) == reds(dataset.train)


def test_an_official_test_split_is_kept_whole(tmp_path: Path) -> None:
    for name, first in (("x", 0), ("y", 100)):
        write(tmp_path / "train" / name, range(first, first + 30))
        write(tmp_path / "test" / name, range(first + 50, first + 55))
    dataset = load(tmp_path)
    assert reds(dataset.test) == [*range(50, 55), *range(150, 155)]
    assert dataset.test.labels.tolist() == [0] * 5 + [1] * 5
    assert sorted(reds(dataset.train) + reds(dataset.validation)) == [*range(30), *range(100, 130)]
    assert torch.bincount(dataset.validation.labels).tolist() == [3, 3]


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    write(tmp_path / "a" / "images", range(5))
    write(tmp_path / "b" / "images", range(5))
    assert load(tmp_path).class_names == ("a", "b")


def test_a_class_of_three_is_in_every_split(tmp_path: Path) -> None:
    write(tmp_path / "large", range(0, 90))
    write(tmp_path / "small", range(100, 103))
    dataset = load(tmp_path)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.labels.sum() == 1


def test_other_kinds_of_images_become_colour(tmp_path: Path) -> None:
    for name, mode in (("grey", "L"), ("palette", "P"), ("transparent", "RGBA"), ("black", "1")):
        write(tmp_path / name, range(3), mode=mode)
    dataset = load(tmp_path)
    assert dataset.channels == 3
    grey = dataset.test.images[dataset.test.labels == dataset.class_names.index("grey")]
    assert grey.numel() and (grey == grey[:, :1]).all()


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    """A patterned image, so that rows, columns and channels in another order are noticed."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.bmp")
    assert torch.equal(load(tmp_path).train.images[0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_limit_is_known_before_the_images_are_read(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a", range(0, 40))
    write(tmp_path / "train" / "b", range(100, 140))
    for name in ("a", "b"):
        write(tmp_path / "test" / name, range(3))
    full, cut = load(tmp_path), load(tmp_path, limit=6)
    assert [torch.bincount(s.labels).tolist() for s in (cut.train, cut.validation)] == [[3, 3], [3, 3]]
    of_a, of_b = ([red for red in reds(full.train) if (red >= 100) is is_b] for is_b in (False, True))
    assert reds(cut.train) == of_a[:3] + of_b[:3]
    for red in set(reds(full.train)) - set(reds(cut.train)):
        (tmp_path / "train" / ("a" if red < 100 else "b") / f"{red:03}.png").write_bytes(b"unreadable")
    assert reds(load(tmp_path, limit=6).train) == reds(cut.train)


# --- bad input: one line that names the place ---


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"`{tmp_path / 'none'}` does not exist" in refused(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "not a folder" in refused(tmp_path / "file")


def test_an_empty_folder_is_told_what_it_should_hold(tmp_path: Path) -> None:
    assert "holds no folder" in refused(tmp_path)
    write(tmp_path / "a", range(5))
    assert "only `a/`" in refused(tmp_path)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", range(5))
    (tmp_path / "b").mkdir()
    assert f"`{tmp_path / 'b'}` needs at least 3 images" in refused(tmp_path)
    assert "holds 0" in refused(tmp_path)


def test_train_without_test_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a", range(5))
    write(tmp_path / "train" / "b", range(5))
    assert "no `test/`" in refused(tmp_path)


def test_classes_that_differ_between_train_and_test_are_named(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "test/a", "test/c"):
        write(tmp_path / folder, range(5))
    assert "`b/` is in one of them only" in refused(tmp_path)


def test_mixed_sizes_name_two_files(tmp_path: Path) -> None:
    write(tmp_path / "a", range(4))
    write(tmp_path / "b", range(4), size=(7, 7))
    message = refused(tmp_path)
    assert "6x6" in message and "7x7" in message and str(tmp_path / "b") in message


def test_an_image_that_is_not_square_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", range(4), size=(6, 8))
    write(tmp_path / "b", range(4), size=(6, 8))
    assert "6x8" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a", range(4))
    write(tmp_path / "b", range(4))
    bad = tmp_path / "b" / "002.png"
    bad.write_bytes(content)
    assert f"`{bad}` cannot be read as an image" in refused(tmp_path)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", range(4), size=(64, 64))
    write(tmp_path / "b", range(4), size=(64, 64))
    bad = tmp_path / "a" / "003.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    assert f"`{bad}` cannot be read as an image" in refused(tmp_path)


# --- real images ---


def test_real_images_are_read(tmp_path: Path) -> None:
    unpack_cifar10_jpeg(tmp_path, train=30, test=5)
    dataset = load(tmp_path)
    assert dataset.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [270, 30, 50]
    assert (dataset.image_size, dataset.channels) == (32, 3)
    # Close to the statistics of CIFAR-10, as 300 of its images through JPEG should be.
    assert dataset.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.03)
    assert dataset.std == pytest.approx([0.2471, 0.2435, 0.2616], abs=0.03)
