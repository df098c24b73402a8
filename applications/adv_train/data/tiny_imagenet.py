"""Tiny-ImageNet in its original layout."""

from __future__ import annotations

from pathlib import Path

import torch

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.listing import Listing, listing, read_splits
from adv_train.data.published import fetched
from adv_train.data.registry import DATASETS
from adv_train.data.stratified import limited, stratified_holdout

_FOLDER = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_FOLDER}.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
# Mean and standard deviation of ImageNet, as in the published code of Zhang et al. (ICML 2022), like the augmentation.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@DATASETS.register("tiny-imagenet")
def load(name: str, root: Path, limit: int | None) -> Dataset:
    """110,000 colour images of 64x64 pixels in 200 classes; the labelled val/ is halved for validation and test.

    100,000 to train on, 5,000 for validation, 5,000 to test: a fixed random half of the 50 images of each class in val/
    is for validation, the other half for test. The images in test/ have no labels and are not used. Grey images are
    converted to RGB. Classes are numbered in the order of their WordNet ids, as in code that reads class folders.
    Source: Le and Yang (2015), "Tiny ImageNet visual recognition challenge", Stanford CS 231N.

    Args:
        name: Name of the data set.
        root: Folder of the data; missing files are downloaded into it.
        limit: Largest number of samples in the training split and in the validation split; others are not read.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded, files cannot be read, or the images do not
            fit into memory.
    """
    folder = root / _FOLDER
    put = f"`{_FOLDER}.zip` from {_URL} into `{root}`, as it is or unpacked to `{folder}`"
    class_names, fit, labelled = fetched(name, root, lambda download: _listed(root, folder, download), put)
    test, validation = stratified_holdout(labelled.labels, len(labelled.labels) // 2)
    splits = read_splits(
        folder,
        {
            "train": (fit, limited(torch.arange(len(fit.labels)), fit.labels, limit)),
            "validation": (labelled, limited(validation, labelled.labels, limit)),
            "test": (labelled, test),
        },
    )
    return Dataset(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=class_names,
        mean=_MEAN,
        std=_STD,
        augment=Augment(),
    )


def _listed(root: Path, folder: Path, download: bool) -> tuple[tuple[str, ...], Listing, Listing]:
    """List classes, training images and labelled val/ images from the tables, so that a missing file is noticed."""
    if download:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(_URL, str(root), md5=_MD5)
    wnids = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    words = dict(row[:2] for row in _rows(folder / "words.txt"))
    label = {wnid: number for number, wnid in enumerate(wnids)}
    fit = [
        (folder / "train" / wnid / "images" / row[0], label[wnid])
        for wnid in wnids
        for row in _rows(folder / "train" / wnid / f"{wnid}_boxes.txt")
    ]
    val = folder / "val"
    labelled = [(val / "images" / row[0], label[row[1]]) for row in _rows(val / "val_annotations.txt")]
    class_names = tuple(words[wnid].partition(",")[0] for wnid in wnids)
    return class_names, listing(fit, len(wnids)), listing(labelled, len(wnids))


def _rows(table: Path) -> list[list[str]]:
    return [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
