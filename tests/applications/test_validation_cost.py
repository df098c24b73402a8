"""What validation costs beside an epoch, in forward passes that are counted and not timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from adv_train.bench import step_cost
from adv_train.config import RunConfig, TrainingConfig, resolve
from adv_train.data import PUBLISHED_FACTS, Dataset
from adv_train.data.split import Split
from adv_train.methods import METHODS
from adv_train.reproduction.cost import validation
from adv_train.trainer import Trainer

CIFAR = PUBLISHED_FACTS["cifar10"]


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and matrix products, backward ones among them."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def operations(call: Callable[[], object]) -> int:
    with Operations() as counter:
        call()
    return counter.total


def cifar(method: str, **others: Any) -> RunConfig:
    """What a user gets who says nothing but data and method, if not for the network: costs are in passes of it."""
    return resolve({"data": "cifar10", "method": method, "device": "cpu", "model": "small-cnn", **others})


def trainer(config: RunConfig, images: int) -> Trainer:
    """Make one whose model answers right on each of so many validation images, so that all are attacked."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split, few = Split(pixels, torch.zeros(images, dtype=torch.int64)), Split(pixels[:4], torch.arange(4))
    dataset = Dataset("random", few, split, few, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, None)
    made = Trainer(config, dataset, torch.device("cpu"))
    with torch.no_grad():
        right = made.state.model.eval()(pixels / 255).argmax(1)
    made.dataset = dataclasses.replace(dataset, validation=Split(pixels, right))
    return made


@pytest.mark.parametrize(("images", "most", "steps"), [(3, None, 2), (6, 4, 1), (4, 9, 3)])
def test_the_estimate_is_what_validation_computes(images: int, most: int | None, steps: int) -> None:
    config = cifar("fast-at", validation_images=most, validation_steps=steps, eps=1e-9)
    made = trainer(config, images)
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        forward = operations(lambda: made.state.model.eval()(pixels))
    assert operations(made.validate) / forward == pytest.approx(validation(config.training, images), rel=1e-9)


CHEAPEST = {"model": "preact-resnet-18", "base_width": 4}


@pytest.mark.parametrize(
    ("method", "network"), [("standard", CHEAPEST), ("fast-at", CHEAPEST), *((name, {}) for name in METHODS.names())]
)
def test_by_default_it_takes_less_than_a_tenth_of_an_epoch_of_cifar(method: str, network: dict[str, Any]) -> None:
    config = cifar(method, **network)
    epoch = config.full_method.replays() * step_cost(config, CIFAR.arguments) * CIFAR.train
    assert 0.001 < validation(config.training, CIFAR.validation) / epoch < 0.1


def test_digits_are_validated_as_their_records_were() -> None:
    training = resolve({"data": "digits", "method": "fast-at"}).training
    assert (training.validation_images, training.validation_steps) == (None, 10)
    assert validation(training, 180) == (1 + 22 + 3) * 180 + 4 * 180
    assert validation(TrainingConfig(epochs=1, batch_size=1), 300) == (1 + 12 + 3) * 300 + 4 * 256
