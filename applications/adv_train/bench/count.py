"""The cost of a training step in forward passes, counted rather than timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adv_train import models
from adv_train.config import RunConfig
from adv_train.data import Batch
from adv_train.methods import Method
from adv_train.methods.weights import trainable
from adv_train.threat import Threat


def forward_equivalents(method: Method, model: nn.Module, batch: Batch, threat: Threat) -> float:
    """Return the floating-point operations of one step divided by those of one forward pass of the same batch.

    PyTorch's counter counts convolutions and matrix products, but no elementwise operations. The step changes the
    running statistics of BatchNorm, which are restored afterwards.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    params = trainable(model)
    generator = torch.Generator(batch.x.device).manual_seed(0)
    try:
        with torch.no_grad():
            forward = flops(lambda: model(batch.x))
        return flops(lambda: method(model, params, batch, threat, generator=generator)) / forward
    finally:
        for name, value in model.named_buffers():
            value.copy_(buffers[name])


def step_cost(config: RunConfig, arguments: Mapping[str, Any]) -> float:
    """Return the cost of a step of a run in forward passes, counted on the run's own network.

    Eight images are enough, because all costs are proportional to the batch size. Fewer could be too few for a method
    that holds out a quarter of the batch.

    Args:
        config: Configuration of the run.
        arguments: The keyword arguments for `adv_train.models.create` that depend on the data.
    """
    model, x = _network(config, arguments)
    batch = Batch(x, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    return forward_equivalents(config.full_method, model.train(), batch, config.threat)


def pass_cost(config: RunConfig, arguments: Mapping[str, Any]) -> float:
    """Return the floating-point operations of a forward pass of one image on a run's network.

    Args:
        config: Configuration of the run.
        arguments: The keyword arguments for `adv_train.models.create` that depend on the data.
    """
    model, x = _network(config, arguments)
    with torch.no_grad():
        return flops(lambda: model.eval()(x)) / len(x)


def _network(config: RunConfig, arguments: Mapping[str, Any]) -> tuple[nn.Module, Tensor]:
    """Make a run's network and eight images, shape ``(8, channels, height, width)``."""
    model = models.create(config.model.name, **arguments, seed=0, **config.model.options)
    side, generator = arguments["image_size"], torch.Generator().manual_seed(0)
    return model, torch.rand(8, arguments["channels"], side, side, generator=generator)


def flops(function: Callable[[], Any]) -> int:
    """Return the number of floating-point operations that PyTorch counts in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
