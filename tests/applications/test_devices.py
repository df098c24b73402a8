"""On an accelerator: a training step makes no tensor on another device and never waits for it."""

from __future__ import annotations

import pytest
import torch

from adv_train import methods
from adv_train.data import Batch
from adv_train.models import registry
from adv_train.threat import Threat
from tests.accelerator import DEVICE, Accelerator


@pytest.mark.parametrize("method", methods.METHODS.names())
@pytest.mark.parametrize("model", ["small-cnn", "preact-resnet-18"])
def test_a_training_step_stays_on_the_device_and_does_not_wait(model: str, method: str) -> None:
    described = {"channels": 3, "classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    network = registry.create(model, seed=0, **described).to(DEVICE)
    x = torch.empty(4, 3, 32, 32, device=DEVICE)
    y = torch.empty(4, dtype=torch.int64, device=DEVICE)
    params, batch = dict(network.named_parameters()), Batch(x, y, torch.arange(4, device=DEVICE))
    with Accelerator() as accelerator:
        # Not through `training_gradient`, which looks at its images.
        made = methods.METHODS.create(method)
        steps = [made(network, params, batch, Threat(norm, 8 / 255)) for norm in made.norms]  # type: ignore[arg-type]
    assert accelerator.waits == 0
    for step in steps:
        assert {grad.device for grad in step.grads.values()} == {DEVICE}
        assert step.loss.device == step.delta.device == DEVICE
