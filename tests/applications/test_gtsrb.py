"""GTSRB from files in its published format: frames of one sign stay together, and no sign is cut or mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adv_train import data
from adv_train.data import Augment, Split
from adv_train.errors import UserError
from tests.applications.published_files import network, write_gtsrb, write_ppm


def colours(split: Split) -> list[list[int]]:
    assert split.images.shape[1:] == (3, 32, 32) and split.images.dtype == torch.uint8
    assert (split.images == split.images[:, :, :1, :1]).all() and split.images.is_contiguous()
    return split.images[:, :, 0, 0].tolist()


def test_whole_tracks_are_held_out_of_every_class(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    dataset = data.load("gtsrb", root=tmp_path)
    train, validation = colours(dataset.train), colours(dataset.validation)
    for split, found in ((dataset.train, train), (dataset.validation, validation)):
        assert split.labels.tolist() == [label for label, _, _ in found]
        assert split.names == tuple(f"GTSRB/Training/{a:05}/{b:05}_{c:05}.ppm" for a, b, c in found)
    everything = [[label, track, frame] for label in range(43) for track in range(10) for frame in range(2)]
    assert sorted(train + validation) == everything
    held_out = {(label, track) for label, track, _ in validation}
    assert sorted(label for label, _ in held_out) == list(range(43))  # a tenth of ten tracks
    assert not held_out & {(label, track) for label, track, _ in train}
    # Part of what a published figure means: a new version of a dependency must not move it.
    assert [track for _, track in sorted(held_out)][:10] == [9, 7, 8, 1, 1, 5, 4, 2, 8, 6]


def test_the_test_images_are_labelled_by_their_table(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=2, frames=1)
    dataset = data.load("gtsrb", root=tmp_path)
    assert dataset.test.names == tuple(f"GTSRB/Final_Test/Images/{number:05}.ppm" for number in range(43))
    assert dataset.test.labels.tolist() == [label for label, _, _ in colours(dataset.test)]
    assert sorted(dataset.test.labels.tolist()) == list(range(43))


def test_signs_are_neither_mirrored_nor_named_amiss(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=2, frames=1)
    dataset = data.load("gtsrb", root=tmp_path)
    assert dataset.augment == Augment(flip=False)
    known = {0: "speed limit 20 km/h", 8: "speed limit 120 km/h", 14: "stop", 17: "no entry", 40: "roundabout"}
    assert len(dataset.class_names) == 43 == len(set(dataset.class_names))
    assert {number: dataset.class_names[number] for number in known} == known
    assert len(data.load("gtsrb", root=tmp_path, limit=43).train) == 43


def test_a_picture_that_is_no_square_is_squeezed_not_cut(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=2, frames=1)
    wide = np.zeros((32, 64, 3), dtype=np.uint8)
    wide[:, :16] = 255
    (file,) = (tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images").glob("00000.ppm")
    write_ppm(file, wide)
    image = data.load("gtsrb", root=tmp_path).test.images[0]
    assert (image[:, :, :7] == 255).all() and (image[:, :, 9:] == 0).all()


def test_what_an_interrupted_download_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(monkeypatch)
    write_gtsrb(tmp_path, tracks=2, frames=1)
    folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / "00012"
    (folder / "00001_00000.ppm").unlink()
    with pytest.raises(UserError, match=r"1 of \d+ files cannot be read.*00012/00001_00000.*Remove `.*gtsrb`"):
        data.load("gtsrb", root=tmp_path)
    table = folder / "GT-00012.csv"
    table.write_text(table.read_text().splitlines()[0])
    with pytest.raises(UserError, match=r"missing or damaged .*no image of class 12 is listed"):
        data.load("gtsrb", root=tmp_path)
    table.unlink()
    with pytest.raises(UserError, match=r"missing or damaged .*GT-00012\.csv"):
        data.load("gtsrb", root=tmp_path)
