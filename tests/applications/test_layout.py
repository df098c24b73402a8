"""Which folders are splits and which are classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from adv_train import data
from adv_train.data.layout import find_layout
from adv_train.errors import UserError


def write(folder: Path, count: int = 12, first: int = 0) -> None:
    """Write images that all differ, also from those of other folders where ``first`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (6, 6), (number % 256, number // 256, len(folder.name))).save(folder / f"{number:05}.png")


def laid_out(top: Path, *splits: str) -> Path:
    for place, split in enumerate(splits):
        for offset, name in enumerate("ab"):
            write(top / split / name, first=1000 * place + 100 * offset)
    return top


def origins(split: data.Split) -> set[str]:
    assert split.names is not None
    return {name.split("/")[0] for name in split.names}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "VALIDATION", "TESTING"),
        ("training", "valid", "testing"),
        ("training_set", "dev_set", "test_set"),
        ("Train Data", "validation-split", "TestImages"),
    ],
)
def test_split_folders_are_taken_for_what_they_are(tmp_path: Path, train: str, validation: str, test: str) -> None:
    dataset = data.load(f"imagefolder:{laid_out(tmp_path, train, validation, test)}", root="")
    assert dataset.class_names == ("a", "b")
    assert [origins(s) for s in (dataset.train, dataset.validation, dataset.test)] == [{train}, {validation}, {test}]
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [24, 24, 24]


@pytest.mark.parametrize("second", ["Test", "validation", "VAL"])
def test_a_split_without_a_folder_is_cut_from_train(tmp_path: Path, second: str) -> None:
    dataset = data.load(f"imagefolder:{laid_out(tmp_path, 'Train', second)}", root="")
    cut, own = (dataset.validation, dataset.test) if second == "Test" else (dataset.test, dataset.validation)
    assert origins(own) == {second} and len(own) == 24
    assert origins(cut) == {"Train"} and set(cut.labels.tolist()) == {0, 1}
    assert len(cut) + len(dataset.train) == 24


def test_names_that_only_begin_like_splits_are_classes(tmp_path: Path) -> None:
    for name in ("trainer", "testimony", "valley", "values", "training wheels"):
        write(tmp_path / name)
    assert find_layout(tmp_path).classes == ("testimony", "trainer", "training wheels", "valley", "values")


def test_a_class_inside_a_split_may_be_called_train(tmp_path: Path) -> None:
    """As in CIFAR-100."""
    for split in ("train", "test"):
        for name in ("bus", "train"):
            write(tmp_path / split / name)
    assert find_layout(tmp_path).classes == ("bus", "train")


def test_folders_without_images_beside_the_splits_do_not_matter(tmp_path: Path) -> None:
    laid_out(tmp_path, "train", "test")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "notes.txt").write_text("")
    assert find_layout(tmp_path).classes == ("a", "b")


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """macOS writes `._name` beside each `name` on foreign disks."""
    for name in "ab":
        write(tmp_path / name)
        (tmp_path / name / "._00001.png").write_bytes(b"not an image")
    data.load(f"imagefolder:{tmp_path}", root="")


def test_images_in_hidden_folders_are_left_out(tmp_path: Path) -> None:
    """Notebooks keep copies in `.ipynb_checkpoints`, and some programs previews: they would cross the splits."""
    for place, name in enumerate("ab"):
        write(tmp_path / name, first=100 * place)
        write(tmp_path / name / ".ipynb_checkpoints", first=1000 + 100 * place)
        write(tmp_path / name / "more", count=2, first=2000 + 100 * place)
    found = data.load(f"imagefolder:{tmp_path}", root="")
    names = [name for split in (found.train, found.validation, found.test) for name in split.names or ()]
    assert len(names) == 28 and not any("checkpoints" in name for name in names)
    assert found.record is not None and found.record.beyond == 0


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/a", "train/b", "Train/a", "Train/b", "test/a", "test/b"), "both for the train split"),
        (("train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b"), "both for the validation split"),
        (("train/a", "train/b", "test/a", "test/b", "c"), "images in `c/`.*splits or classes"),
        (("plane", "train", "car"), "images in `car/`.*splits or classes"),
        (("val/a", "val/b", "Test/a", "Test/b"), "no `train/`"),
        (("Train/a", "Train/b"), "no `test/`"),
        (("train/a", "train/b", "val/a", "val/c"), "`b/` is in one of them only"),
        (("train/a", "train/b", "test/a", "test/c"), "`b/` is in one of them only"),
        (("a/train", "a/test", "b/train", "b/test"), "Split folders contain class folders"),
        (("train/train/a", "train/test/a", "test/train/a", "test/test/a"), "holds splits"),
    ],
)
def test_what_can_be_understood_in_two_ways_is_refused(tmp_path: Path, folders: tuple[str, ...], words: str) -> None:
    for folder in folders:
        write(tmp_path / folder)
    if {entry.name for entry in tmp_path.iterdir()} != {Path(folder).parts[0] for folder in folders}:
        pytest.skip("this file system does not tell Train from train")
    with pytest.raises(UserError, match=words) as error:
        find_layout(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
