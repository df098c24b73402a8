"""Training in the channels-last layout: the images of a batch lie as the weights do, and the results are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adv_train import data
from adv_train.config import resolve
from adv_train.data import Batch, Dataset, Split
from adv_train.data.augment import Augment
from adv_train.errors import UserError
from adv_train.methods import METHODS
from adv_train.trainer import Trainer
from adv_train.training_step import TrainingStep

LAST = torch.channels_last


def colour(count: int = 12) -> Dataset:
    """Random images: of images with one channel, both layouts are the same."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 12, 12), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.randint(10, (count,), generator=generator))
    return Dataset("random", split, split, split, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, Augment(padding=2))


def trained(method: str, *, channels_last: bool) -> tuple[Trainer, dict[str, Any], list[Batch]]:
    """Train for an epoch of two batches; return also its figures and the batches."""
    chosen = {"data": "cifar10", "method": method, "model": "small-cnn", "device": "cpu", "batch_size": 8, "lr": 0.01}
    trainer = Trainer(resolve({**chosen, "epochs": 1, "channels_last": channels_last}), colour(), torch.device("cpu"))
    seen: list[Batch] = []
    with pytest.MonkeyPatch.context() as patch:
        take = TrainingStep.__call__
        patch.setattr(TrainingStep, "__call__", lambda step, batch: (seen.append(batch), take(step, batch))[1])
        return trainer, trainer.train_epoch(0, lambda: None), seen


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_trains_as_in_the_other_layout(method: str) -> None:
    here, found, batches = trained(method, channels_last=True)
    there, expected, others = trained(method, channels_last=False)
    assert len(batches) == len(others) >= 2
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.x, other.x)
        assert one.x.is_contiguous(memory_format=LAST) and not one.x.is_contiguous()
        assert other.x.is_contiguous()
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    begun = Trainer(there.config, there.dataset, there.device)
    here_now, there_now, before = (
        torch.cat([value.detach().flatten() for value in trainer.state.model.parameters()])
        for trainer in (here, there, begun)
    )
    # Relative to what training changed. Rounding turns the sign of some slopes that are nearly zero.
    assert float((here_now - there_now).norm() / (there_now - before).norm()) <= 1e-2


def test_a_network_on_which_torch_crashes_is_refused() -> None:
    chosen = {
        "data": "cifar10",
        "method": "standard",
        "model": "preact-resnet-18",
        "device": "cpu",
        "channels_last": True,
    }
    with pytest.raises(UserError, match=r"torch crashes .* 4 channels"):
        Trainer(resolve({**chosen, "base_width": 4}), colour(), torch.device("cpu"))
    for other in ({"base_width": 8}, {"base_width": 4, "channels_last": False}):
        Trainer(resolve({**chosen, **other}), colour(), torch.device("cpu"))


def test_validation_sees_the_layout_of_the_model() -> None:
    found = {}
    for channels_last in (True, False):
        trainer, _, _ = trained("standard", channels_last=channels_last)
        seen: list[bool] = []
        first = next(module for module in trainer.state.model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].is_contiguous()))
        found[channels_last] = trainer.validate()
        assert seen and set(seen) == {not channels_last}
    assert found[True] == pytest.approx(found[False], rel=1e-4)


def test_batches_are_contiguous_unless_another_layout_is_asked_for() -> None:
    split = colour().train
    plain, last = (
        next(data.batches(split, 8, generator=torch.Generator().manual_seed(0), **chosen)).x
        for chosen in ({}, {"layout": LAST})
    )
    assert plain.is_contiguous() and last.is_contiguous(memory_format=LAST) and torch.equal(plain, last)
