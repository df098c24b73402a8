"""The rungs of the ladder: configurations of a training run that differ in one switch, and a warm trainer for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from adv_train import data
from adv_train.config import resolve
from adv_train.data import Batch, Dataset, Split
from adv_train.methods import Method
from adv_train.trainer import Trainer
from benchmarks.gpu import steps

#: The name of each rung, the rung that it is added to, and the keys of the configuration that it sets. The graph
#: refuses torch's fused optimiser: it has one of its own, which updates all weights in a few kernels as well.
_SWITCHES: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
    ("fp32", None, {"precision": "fp32"}),
    ("tf32", "fp32", {"precision": "tf32"}),
    ("bf16", "tf32", {"precision": "bf16"}),
    ("channels last", "bf16", {"channels_last": True}),
    ("fused optimiser", "channels last", {"optimizer_options": {"fused": True}}),
    ("CUDA graph", "channels last", {"accelerate": "graph"}),
    ("compiled", "fused optimiser", {"accelerate": "compile"}),
)
FIRST = _SWITCHES[0][0]
#: Steps use clipping and weight averaging; the learning rate is small, since the labels are random.
_TRAINING = {"lr": 0.01, "schedule": "constant", "clip": 1.0, "ema": 0.999, "epochs": 1000, "eps": "8/255"}
#: Batches of the warm-up epoch. A graph is captured in its third step.
_BATCHES = {"cuda": 4, "cpu": 1}


@dataclass(frozen=True)
class Rung:
    """One optimisation on top of others.

    Attributes:
        name: name in the output.
        before: the rung that it is added to; None for the first.
        switches: the keys of the configuration that are set, including those of the rungs below.
    """

    name: str
    before: str | None
    switches: Mapping[str, Any]


def rungs(method: Method) -> Iterator[Rung]:
    """Yield the rungs of a method, with compilation where the method allows it."""
    found: dict[str, dict[str, Any]] = {}
    for name, before, adds in _SWITCHES:
        if adds.get("accelerate") == "compile" and not method.differentiates_once:
            continue
        found[name] = {**(found[before] if before else {}), **adds}
        yield Rung(name, before, found[name])


def prepared(title: str, switches: Mapping[str, Any], device: torch.device, *, quick: bool) -> tuple[Trainer, Batch]:
    """Return a trainer that has trained for a short epoch on random images, so that it is warm, and one batch."""
    method, options = steps.METHODS[title]
    size, model = (4, "small-cnn") if quick else (128, "preact-resnet-18")
    chosen = {"data": "cifar10", "method": method, **options, "model": model, "batch_size": size, **_TRAINING}
    dataset = _random_images(_BATCHES[device.type] * size).to(device)
    trainer = Trainer(resolve({**chosen, "device": device.type, **switches}), dataset, device)
    trainer.train_epoch(0, lambda: None)
    return trainer, next(data.batches(dataset.train, size, generator=torch.Generator().manual_seed(0)))


def _random_images(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (count,), generator=generator))
    return Dataset("random", split, split, split, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, augment=None)
