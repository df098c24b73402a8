"""Training with replayed CUDA graphs, compared with the same steps run eagerly."""

from __future__ import annotations

import torch
from torch import Tensor

from adv_train import data
from adv_train.accelerate import Replayed
from adv_train.config import resolve
from adv_train.trainer import Trainer
from benchmarks.gpu.resumed import deterministic
from benchmarks.gpu.stages import Row
from benchmarks.measure import largest_relative_error

#: An epoch has four whole batches and a smaller one, which is captured in the third epoch.
_EPOCHS, _IMAGES = 4, 144


def against_eager(method: str, device: torch.device) -> Row:
    """Train on the digits twice eagerly and once by replays, from the same buffers with deterministic algorithms.

    It compares the weights, batch norm's statistics, the average of the weights, momenta and the method's memory. Two
    eager runs measure how reproducible the device is: if they agree bit for bit, so must the replays; otherwise the
    replays may differ four times as much. `apart` is the distance from `accelerate: off`, whose optimiser rounds
    differently.
    """
    with deterministic():
        off = _trained(method, device, "off", captures=False)
        alone, again = (_trained(method, device, "graph", captures=False) for _ in range(2))
        replayed = _trained(method, device, "graph", captures=True)
    error, twin = largest_relative_error(replayed, alone), largest_relative_error(again, alone)
    return {"error": error, "goal": 4 * twin, "met": error <= 4 * twin, "apart": largest_relative_error(replayed, off)}


def _trained(method: str, device: torch.device, accelerate: str, *, captures: bool) -> list[Tensor]:
    chosen = {"data": "digits", "method": method, "device": device.type, "eps": 0.2, "accelerate": accelerate}
    sizes = {"epochs": _EPOCHS, "batch_size": 32, "train_limit": _IMAGES, "ema": 0.9, "momentum_cycling": True}
    dataset = data.load("digits", root="", limit=_IMAGES, device=device)
    trainer = Trainer(resolve({**chosen, **sizes, "clip": 1.0}), dataset, device)
    if accelerate == "graph":
        trainer.replayed = Replayed(trainer.step, captures=captures)
    for epoch in range(_EPOCHS):
        trainer.train_epoch(epoch, lambda: None)
    state = trainer.state
    models = [model for model in (state.model, state.average) if model is not None]
    momenta = [value for kept in state.optimizer.state.values() for value in kept.values()]
    found = [*(value for model in models for value in model.state_dict().values()), *state.memory.values(), *momenta]
    return [value.double() for value in found]
