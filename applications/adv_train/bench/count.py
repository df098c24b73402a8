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
from adv_train.threat import Threat


def forward_equivalents(method: Method, model: nn.Module, batch: Batch, threat: Threat) -> float:
    """Return the floating point operations of one step over those of one forward pass of the same batch.

    PyTorch's counter is used: it counts convolutions and matrix products, and nothing elementwise. The step runs on
    a copy of BatchNorm's statistics, which are restored afterwards.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    params: dict[str, Tensor] = dict(model.named_parameters())
    generator = torch.Generator(batch.x.device).manual_seed(0)
    try:
        with torch.no_grad():
            forward = flops(lambda: model(batch.x))
        return flops(lambda: method(model, params, batch, threat, generator=generator)) / forward
    finally:
        for name, value in model.named_buffers():
            value.copy_(buffers[name])


def step_cost(config: RunConfig, arguments: Mapping[str, Any]) -> float:
    """Return the forward passes that a step of a run costs, on the run's own network.

    Eight images are enough, since all costs grow with the batch, and a method may set a quarter of it apart.

    Args:
        config: Of the run.
        arguments: What `adv_train.models.create` needs to know of the data.
    """
    model = models.create(config.model.name, **arguments, seed=0, **config.model.options)
    side, generator = arguments["image_size"], torch.Generator().manual_seed(0)
    x = torch.rand(8, arguments["channels"], side, side, generator=generator)
    batch = Batch(x, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    return forward_equivalents(config.full_method, model.train(), batch, config.threat)


def flops(function: Callable[[], Any]) -> int:
    """Return the floating point operations that PyTorch counts in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
