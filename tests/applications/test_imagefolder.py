"""Folders of images, from files that Pillow writes and from real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adv_train import data
from adv_train.data import Augment, Dataset, Split
from adv_train.errors import UserError
from tests.applications.image_files import write_digit_photos
from tests.applications.real_images import ARCHIVE, write_real_images


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
    write(tmp_path / "a", range(100, 160))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    dataset = load(tmp_path)
    splits = (dataset.train, dataset.validation, dataset.test)
    # Each image falls on its own: of 60, 5.4 for validation and 6 to test, with a standard deviation of 2.3.
    assert all(1 <= count <= 13 for split in splits[1:] for count in torch.bincount(split.labels).tolist())
    assert sorted(red for split in splits for red in reds(split)) == [*range(60), *range(100, 160)]
    for split in splits:
        assert split.labels.tolist() == [0 if red >= 100 else 1 for red in reds(split)]
        assert split.images.shape[1:] == (3, 6, 6) and split.images.dtype == torch.uint8
        assert split.names == tuple(f"{'a' if red >= 100 else 'b'}/{red:03}.png" for red in reds(split))
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
    assert set(dataset.validation.labels.tolist()) == {0, 1} and len(dataset.validation) < 20


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
    for name, mode in (("grey", "L"), ("palette", "P"), ("transparent", "RGBA")):
        write(tmp_path / name, range(0, 60, 4), mode=mode)
    for number in range(9):  # bits: images that differ need a pattern
        bits = Image.new("1", (6, 6))
        bits.putpixel((number % 6, number // 6), 1)
        (tmp_path / "black").mkdir(exist_ok=True)
        bits.save(tmp_path / "black" / f"{number}.png")
    dataset = load(tmp_path)
    assert dataset.channels == 3
    grey = dataset.test.images[dataset.test.labels == dataset.class_names.index("grey")]
    assert grey.numel() and (grey == grey[:, :1]).all()


def test_a_limit_is_known_before_the_images_are_read(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 60)):
        write(tmp_path / split / "a", range(first, first + 40))
        write(tmp_path / split / "b", range(first + 100, first + 140))
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


def test_mixed_sizes_name_two_files(tmp_path: Path) -> None:
    write(tmp_path / "a", range(4))
    write(tmp_path / "b", range(4), size=(7, 7))
    message = refused(tmp_path)
    assert "6x6" in message and "7x7" in message and str(tmp_path / "b") in message


def test_an_image_that_is_not_square_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", range(4), size=(6, 8))
    write(tmp_path / "b", range(4), size=(6, 8))
    assert "6x8" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [lambda png: b"", lambda png: b"not an image", lambda png: png[:8] + b"\0" * 40, lambda png: png[:-40]],
    ids=["empty", "text", "the first bytes of a PNG", "truncated"],
)
def test_an_unreadable_image_is_named(tmp_path: Path, content: Callable[[bytes], bytes]) -> None:
    for name in "ab":
        write(tmp_path / name, range(4), size=(64, 64))
    bad = tmp_path / "b" / "002.png"
    bad.write_bytes(content(bad.read_bytes()))
    assert f"`{bad}` cannot be read as an image" in refused(tmp_path)


def test_all_unreadable_images_are_named_together(tmp_path: Path) -> None:
    write(tmp_path / "a", range(40))
    write(tmp_path / "b", range(100, 140))
    bad = [tmp_path / name / f"{number:03}.png" for name, number in (("a", 3), ("a", 4), ("b", 101))]
    for number, file in enumerate(bad):
        file.write_bytes(b"no image %d" % number)
    message = refused(tmp_path)
    assert "3 of 80 files cannot be read as images" in message and "`skip_unreadable`" in message
    assert all(f"`{file}`" in message for file in bad)


def test_of_many_unreadable_images_ten_are_named_and_all_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", range(40))
    write(tmp_path / "b", range(100, 140))
    for number in range(25):
        (tmp_path / "a" / f"{number:03}.png").write_bytes(b"no image %d" % number)
    message = refused(tmp_path)
    assert "25 of 80 files" in message and "and 15 more" in message
    assert message.count(".png`") == 10


def test_unreadable_images_are_skipped_on_request_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", range(60))
    write(tmp_path / "b", range(100, 160))
    (tmp_path / "a" / "070.png").symlink_to(tmp_path / "nowhere")
    bad = {"a/007.png", "a/070.png", "b/108.png", "b/109.png"}
    for name in bad - {"a/070.png"}:
        (tmp_path / name).write_bytes(f"no image {name}".encode())
    with pytest.warns(UserWarning, match="4 of 121 files cannot be read as images and are left out"):
        dataset = data.load(f"imagefolder:{tmp_path}", root="", skip_unreadable=True)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sorted(red for split in splits for red in reds(split)) == sorted(
        {*range(60), *range(100, 160)} - {7, 108, 109}
    )
    for split in splits:
        assert split.names is not None and not bad & set(split.names)
        assert [int(Path(name).stem) for name in split.names] == reds(split)
        assert split.labels.tolist() == [0 if red < 100 else 1 for red in reds(split)]
    assert dataset.record is not None
    with pytest.warns(UserWarning, match="4 image files in .* are not in the recorded split"):
        again = data.load(f"imagefolder:{tmp_path}", root="", split=dataset.record)
    assert again.record == dataset.record and torch.equal(again.train.images, dataset.train.images)


def test_a_class_of_unreadable_images_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a", range(10))
    write(tmp_path / "train" / "b", range(100, 110))
    write(tmp_path / "test" / "a", range(20, 23))
    (tmp_path / "test" / "b").mkdir()
    (tmp_path / "test" / "b" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"No image of class `b` in the test split can be read.*bad\.png"):
        data.load(f"imagefolder:{tmp_path}", root="", skip_unreadable=True)


# --- sizes ---


def test_images_of_all_sizes_are_read_at_one_size(tmp_path: Path) -> None:
    for number, size in enumerate([(6, 8), (30, 10), (4, 4), (9, 9), (12, 5), (7, 40)]):
        write(tmp_path / "a", range(number, number + 1), size=size)
        write(tmp_path / "b", range(100 + number, 101 + number), size=size[::-1])
    assert "give `size`" in refused(tmp_path)
    dataset = data.load(f"imagefolder:{tmp_path}", root="", size=8)
    assert dataset.image_size == 8
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sorted(red for split in splits for red in reds(split)) == [*range(6), *range(100, 106)]
    with pytest.raises(UserError, match="`size` must be at least 1"):
        data.load(f"imagefolder:{tmp_path}", root="", size=0)


def test_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    """A folder for each WordNet id; among its JPEG files are pictures of any shape, some in CMYK, and a PNG."""
    for split, first in (("train", 0), ("val", 100)):
        for wnid in ("n01440764", "n01443537"):
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for number in range(first, first + 4):
                picture = Image.new("RGB", (50 + number, 70), (number, 100, 200))
                picture = picture.convert("CMYK") if number % 4 == 1 else picture
                picture.save(folder / f"{wnid}_{number}.JPEG", "PNG" if number % 4 == 2 else "JPEG")
    dataset = data.load(f"imagefolder:{tmp_path}", root="", size=32)
    assert dataset.class_names == ("n01440764", "n01443537") and dataset.image_size == 32
    assert dataset.validation.names is not None and len(dataset.train) + len(dataset.test) == 8
    assert {name.split("/")[0] for name in dataset.validation.names} == {"val"}
    # Where val/ is called test/, here by links, the figures are those of the images that others report on.
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train").symlink_to(tmp_path / "train")
    (linked / "test").symlink_to(tmp_path / "val")
    reported = data.load(f"imagefolder:{linked}", root="", size=32)
    assert torch.equal(reported.test.images, dataset.validation.images) and len(reported.test) == 8


# --- where the folder is, and what its images go through ---


def test_a_folder_that_moved_is_found_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sets" / "photos" / "a", range(10))
    write(tmp_path / "sets" / "photos" / "b", range(100, 110))
    expected = reds(load(tmp_path / "sets" / "photos").train)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sets" / "photos").rename(tmp_path / "elsewhere" / "photos")
    absolute = tmp_path / "sets" / "photos"
    for name in ("sets/photos", "photos", str(absolute)):
        for root in ("elsewhere", "elsewhere/photos", tmp_path / "elsewhere"):
            assert reds(data.load(f"imagefolder:{name}", root=root).train) == expected
        assert reds(data.load(f"imagefolder:{name}", root="data", path="elsewhere/photos").train) == expected
        with pytest.raises(UserError, match=f"`{name}` does not exist"):
            data.load(f"imagefolder:{name}", root="data")
    (tmp_path / "elsewhere" / "photos").rename(tmp_path / "elsewhere" / "pictures")
    assert reds(data.load("imagefolder:photos", root="x", path=tmp_path / "elsewhere" / "pictures").train) == expected
    with pytest.raises(UserError, match="`gone` does not exist"):
        data.load("imagefolder:elsewhere/pictures", root="x", path="gone")


def test_two_folders_of_one_name_are_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for top in ("photos", "old/photos"):
        write(tmp_path / top / "a", range(10))
        write(tmp_path / top / "b", range(100, 110))
    with pytest.raises(UserError, match="`photos` and `old/photos` are different image folders"):
        data.load("imagefolder:photos", root="old")
    data.load("imagefolder:photos", root=".")
    data.load(f"imagefolder:{tmp_path / 'photos'}", root="old")


@pytest.mark.parametrize(
    ("choice", "augment", "said"),
    [
        (None, Augment(), "shift by up to 4 pixels, flip left to right"),
        ("flip-crop", Augment(), "shift by up to 4 pixels, flip left to right"),
        ("flip", Augment(padding=0), "augmentation: flip left to right"),
        ("crop", Augment(flip=False), "shift by up to 4 pixels"),
        ("none", None, "augmentation: none"),
    ],
)
def test_augmentation_is_a_choice_and_is_said(
    tmp_path: Path, choice: str | None, augment: Augment | None, said: str
) -> None:
    write(tmp_path / "a", range(10))
    write(tmp_path / "b", range(100, 110))
    dataset = data.load(f"imagefolder:{tmp_path}", root="", augment=choice)
    assert dataset.augment == augment
    described = dataset.describe()
    assert described.endswith(said) and "2 classes (a, b)" in described and "3 x 6 x 6" in described
    assert f"{len(dataset.train)} images to train on" in described


def test_options_of_image_folders_are_refused_elsewhere() -> None:
    with pytest.raises(UserError, match="'digits' has no option `size`"):
        data.load("digits", root="", size=16)
    with pytest.raises(UserError, match="'digits' has no option `path`"):
        data.load("digits", root="", path="photos")
    with pytest.raises(UserError, match="'digits' has no option `skip_unreadable`"):
        data.load("digits", root="", skip_unreadable=True)
    with pytest.raises(UserError, match=r"Unknown augmentation `flips`. Did you mean `flip`"):
        data.load("digits", root="", augment="flips")
    assert data.load("digits", root="", augment="crop").augment == Augment(flip=False)


# --- real images ---


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"the archive of real images is not there: {ARCHIVE.name}")
def test_real_images_are_read(tmp_path: Path) -> None:
    write_real_images(tmp_path, train=30, test=5)
    dataset = load(tmp_path)
    assert dataset.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert len(dataset.train) + len(dataset.validation) == 300 and len(dataset.test) == 50
    assert 10 <= len(dataset.validation) <= 60
    assert (dataset.image_size, dataset.channels) == (32, 3)
    # Close to the statistics of CIFAR-10, as 300 of its images through JPEG should be.
    assert dataset.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.03)
    assert dataset.std == pytest.approx([0.2471, 0.2435, 0.2616], abs=0.03)


def test_drawn_images_are_read(tmp_path: Path) -> None:
    write_digit_photos(tmp_path, train=12, test=3, side=16)
    dataset = load(tmp_path)
    assert dataset.class_names == tuple("0123456789")
    assert len(dataset.train) + len(dataset.validation) == 120 and len(dataset.test) == 30
    assert (dataset.image_size, dataset.channels) == (16, 3)
    assert dataset.test.names is not None
    for image, name, label in zip(dataset.test.images, dataset.test.names, dataset.test.labels.tolist(), strict=True):
        with Image.open(tmp_path / name) as file:
            assert torch.equal(image, torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1))
        assert Path(name).parent.name == str(label)
