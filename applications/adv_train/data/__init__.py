"""Data sets of labelled images, by name, in fixed splits; the images are stored on the device that trains."""

from __future__ import annotations

from adv_train.data.augment import AUGMENTATIONS, Augment
from adv_train.data.batches import Batch, batch_bounds, batches, epoch_generator, ordered_batches
from adv_train.data.dataset import Dataset
from adv_train.data.facts import PUBLISHED_FACTS, Facts
from adv_train.data.mixup import Mixture, Mixup
from adv_train.data.motion import Motion
from adv_train.data.record import SplitRecord
from adv_train.data.registry import DATASETS, load, names
from adv_train.data.split import Split

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "PUBLISHED_FACTS",
    "Augment",
    "Batch",
    "Dataset",
    "Facts",
    "Mixture",
    "Mixup",
    "Motion",
    "Split",
    "SplitRecord",
    "batch_bounds",
    "batches",
    "epoch_generator",
    "load",
    "names",
    "ordered_batches",
]
