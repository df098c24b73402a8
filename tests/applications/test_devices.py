"""On an accelerator: a training step makes no tensor on another device and never waits for it."""

from __future__ import annotations

import pytest
import torch

from adv_train import methods, training_gradient
from adv_train.models import registry
from tests.accelerator import DEVICE, Accelerator


@pytest.mark.parametrize("method", methods.METHODS.names())
@pytest.mark.parametrize("model", ["small-cnn", "preact-resnet-18"])
def test_a_training_step_stays_on_the_device_and_does_not_wait(model: str, method: str) -> None:
    described = {"channels": 3, "classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    network = registry.create(model, seed=0, **described).to(DEVICE)
    x = torch.empty(4, 3, 32, 32, device=DEVICE)
    y = torch.empty(4, dtype=torch.int64, device=DEVICE)
    with Accelerator() as accelerator:
        step = training_gradient(network, x, y, method=method, eps=8 / 255)
    assert accelerator.waits == 0
    assert {grad.device for grad in step.grads.values()} == {DEVICE}
    assert step.loss.device == step.delta.device == DEVICE
