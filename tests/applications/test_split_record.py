"""Files that are added later: what the split does with them, with and without its record."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adv_train import data
from adv_train.attacks import PGD
from adv_train.config import resolve, to_yaml
from adv_train.data import Dataset, Split, SplitRecord
from adv_train.data.content_split import cut
from adv_train.errors import UserError
from adv_train.evaluate_run import evaluate_run
from adv_train.train import fit

SPLITS = ("train", "validation", "test")


def add(top: Path, count: int, tag: str, classes: str = "abcd") -> None:
    generator = np.random.default_rng([*tag.encode()])
    for name in classes:
        (top / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(top / name / f"{tag}{number:03}.png")


def load(top: Path, split: SplitRecord | None = None, limit: int | None = None) -> Dataset:
    return data.load(f"imagefolder:{top}", root="", split=split, limit=limit)


def pictures(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def assert_equal(first: Dataset, second: Dataset) -> None:
    assert first.class_names == second.class_names and first.record == second.record
    for split in SPLITS:
        one, other = getattr(first, split), getattr(second, split)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.names == other.names


# --- the split that follows from the content ---

digest = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
small = st.integers(0, 2**120).map(lambda number: f"{number:032x}")
samples = st.lists(st.tuples(st.integers(0, 2), st.one_of(digest, digest, small)), max_size=25)


@settings(deadline=None, max_examples=300)
@given(before=samples, added=samples, edges=st.sampled_from([(0.1,), (0.1, 0.19)]))
def test_added_files_move_no_file_to_an_earlier_split(
    before: list[tuple[int, str]], added: list[tuple[int, str]], edges: tuple[float, ...]
) -> None:
    def place(files: list[tuple[int, str]]) -> dict[tuple[int, str], int]:
        parts = cut([label for label, _ in files], [name for _, name in files], edges)
        assert sorted(i for part in parts for i in part) == list(range(len(files)))
        places = {files[i]: split for split, part in enumerate(parts) for i in part}
        assert all(places[files[i]] == split for split, part in enumerate(parts) for i in part)  # copies together
        return places

    old, new = place(before), place(before + added)
    assert all(new[file] >= old[file] for file in old)


@settings(deadline=None, max_examples=100)
@given(files=samples)
def test_every_class_of_different_files_is_in_the_first_split(files: list[tuple[int, str]]) -> None:
    first, *_ = cut([label for label, _ in files], [name for _, name in files], (0.1, 0.19))
    assert {files[i][0] for i in first} == {label for label, _ in files}


def test_the_split_is_that_of_the_content(tmp_path: Path) -> None:
    """The rule written out: a digest below 0.1 to test, below 0.19 for validation, the smallest where none is."""
    add(tmp_path, 40, "p")
    dataset = load(tmp_path)
    expected: dict[str, set[str]] = {split: set() for split in SPLITS}
    for name in "abcd":
        ordered = sorted(
            (int(blake2b(file.read_bytes(), digest_size=16).hexdigest(), 16) / 2**128, f"{name}/{file.name}")
            for file in (tmp_path / name).iterdir()
        )
        test = [file for at, file in ordered if at < 0.1] or [ordered[0][1]]
        left = [(at, file) for at, file in ordered if file not in test]
        validation = [file for at, file in left if at < 0.19] or [left[0][1]]
        expected["test"] |= set(test)
        expected["validation"] |= set(validation)
        expected["train"] |= {file for _, file in left} - set(validation)
    assert {split: set(getattr(dataset, split).names) for split in SPLITS} == expected
    for split in SPLITS:
        names = getattr(dataset, split).names
        assert list(names) == sorted(names)
        assert ["abcd".index(name[0]) for name in names] == getattr(dataset, split).labels.tolist()


@pytest.mark.parametrize("count", [3, 12, 60])
@pytest.mark.parametrize("more", [1, 7, 100])
def test_added_images_make_no_training_image_a_test_image(tmp_path: Path, count: int, more: int) -> None:
    add(tmp_path, count, "m")
    before = load(tmp_path)
    add(tmp_path, more, "a")  # before the old ones by name
    add(tmp_path, more, "z")
    after = load(tmp_path)
    assert not pictures(after.test) & (pictures(before.train) | pictures(before.validation))
    assert not pictures(after.validation) & pictures(before.train)


def test_renamed_and_copied_images_stay_in_their_split(tmp_path: Path) -> None:
    add(tmp_path, 60, "p")
    before = load(tmp_path)
    for file in [*tmp_path.glob("*/*.png")]:
        content = file.read_bytes()
        for name in blake2b(content).hexdigest()[:8], blake2b(content).hexdigest()[8:16]:
            (file.parent / f"{name}.png").write_bytes(content)
        file.unlink()
    after = load(tmp_path)
    for split in SPLITS:
        assert pictures(getattr(before, split)) == pictures(getattr(after, split))
        assert len(getattr(after, split)) == 2 * len(getattr(before, split))


def test_a_class_of_copies_of_one_image_is_refused(tmp_path: Path) -> None:
    add(tmp_path, 20, "p")
    for number in range(5):
        (tmp_path / "e").mkdir(exist_ok=True)
        (tmp_path / "e" / f"{number}.png").write_bytes((tmp_path / "a" / "p000.png").read_bytes())
    with pytest.raises(UserError, match=r"Class `e`.*has no image for the (train|validation) split"):
        load(tmp_path)


# --- the record ---


def replayed(record: SplitRecord | None) -> SplitRecord:
    assert record is not None
    return SplitRecord.from_mapping(json.loads(json.dumps(record.to_mapping())))


@pytest.mark.parametrize("layout", ["", "train/test"])
def test_a_recorded_split_is_replayed_whatever_is_added(tmp_path: Path, layout: str) -> None:
    tops = [tmp_path / part for part in layout.split("/")] if layout else [tmp_path]
    for top in tops:
        add(top, 30, f"p{top.name[:2]}")
    before = load(tmp_path)
    record = replayed(before.record)
    assert_equal(load(tmp_path, record), before)
    for top in tops:
        add(top, 5, "a")
        add(top, 5, "b", classes="Ac")  # a class that comes first
    with pytest.warns(UserWarning, match=rf"{30 * len(tops)} image files in `.*` are not in the recorded split"):
        assert_equal(load(tmp_path, record), before)


def test_a_recorded_split_moves_with_its_folder(tmp_path: Path) -> None:
    add(tmp_path / "here", 30, "p")
    before = load(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert_equal(load(tmp_path / "there", before.record), before)


def test_a_limited_split_is_recorded_as_it_was_limited(tmp_path: Path) -> None:
    add(tmp_path, 30, "p")
    before = load(tmp_path, limit=8)
    assert_equal(load(tmp_path, before.record, limit=8), before)  # nothing is said of what the limit left out
    add(tmp_path, 30, "a")
    with pytest.warns(UserWarning, match=r"120 image files in `.*` are not in the recorded splits and are left out\."):
        found = load(tmp_path, before.record, limit=8)
    assert_equal(found, before)
    assert found.record == before.record == SplitRecord.from_mapping(before.record.to_mapping())


def test_files_that_do_not_fit_the_record_are_named(tmp_path: Path) -> None:
    add(tmp_path, 30, "p")
    record = load(tmp_path).record
    kept = (tmp_path / "b" / "p003.png").read_bytes()
    (tmp_path / "b" / "p003.png").write_bytes((tmp_path / "b" / "p004.png").read_bytes())
    with pytest.raises(UserError, match=r"1 of 120 files have changed since: `b/p003.png`\."):
        load(tmp_path, record)
    (tmp_path / "b" / "p003.png").write_bytes(kept)
    for file in (tmp_path / "c").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="30 of 120 files are missing or cannot be opened: `c/") as error:
        load(tmp_path, record)
    assert "and 20 more" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"classes": ["a"]},
        {"train": [["a/p000.png", 0]]},
        {"train": [["/etc/passwd", 0, "0"]]},
        {"train": [["../p000.png", 0, "0"]]},
        {"test": 5},
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    add(tmp_path, 12, "p")
    record = load(tmp_path).record
    assert record is not None
    with pytest.raises(UserError, match="The recorded split"):
        SplitRecord.from_mapping(record.to_mapping() | change)


def test_data_sets_whose_split_is_fixed_take_no_record(tmp_path: Path) -> None:
    add(tmp_path, 12, "p")
    digits = data.load("digits", root="")
    assert digits.record is None and digits.test.names is None
    data.load("digits", root="", split=digits.record)
    with pytest.raises(UserError, match="data set 'digits' has no option `split`"):
        data.load("digits", root="", split=load(tmp_path).record)


def test_a_run_whose_record_is_gone_is_neither_continued_nor_judged(tmp_path: Path) -> None:
    add(tmp_path / "photos", 12, "p")
    chosen: dict[str, Any] = {"data": f"imagefolder:{tmp_path / 'photos'}", "method": "fast-at", "model": "small-cnn"}
    chosen |= {"epochs": 1, "batch_size": 16, "validation_steps": 1, "device": "cpu"}
    run = fit(resolve(chosen), tmp_path / "run", progress=False).run
    kept = run.split_file.read_bytes()
    run.split_file.unlink()
    for use in (
        lambda: fit(resolve({**chosen, "epochs": 2}), run.path, progress=False),
        lambda: evaluate_run(run.path, attacks=[PGD(1, 1)]),
    ):
        with pytest.raises(UserError, match=r"split\.json` is missing, .* put it back") as error:
            use()
        assert "\n" not in str(error.value) and not run.split_file.exists()
    run.split_file.write_bytes(kept)
    assert fit(resolve({**chosen, "epochs": 2}), run.path, progress=False).resumed_after == 1
    assert run.split_file.read_bytes() == kept
    (tmp_path / "unbegun").mkdir()
    # As a kill before the first epoch leaves it.
    (tmp_path / "unbegun" / "config.yaml").write_text(to_yaml(resolve(chosen)), encoding="utf-8")
    assert fit(resolve(chosen), tmp_path / "unbegun", progress=False).run.split()
