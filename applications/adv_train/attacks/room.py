"""Finds by trial how many images fit into a device's memory in one pass of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Forward: TypeAlias = Callable[[Tensor], Tensor]

BatchSize: TypeAlias = int | Literal["auto"]
"""A number of images, or ``"auto"``: as many as memory holds."""

MOST: Final = 4096
"""Number of images in the first trial on an accelerator; a larger batch is no faster."""

ON_CPU: Final = 512
"""Largest batch on the CPU, where a larger one is no faster."""

_COPIES: Final = 8
"""Copies of the images for which a trial reserves memory: an attack keeps iterates, gradients and its best images."""

# Parts of the error messages of the allocators of the CPU (on Linux, on Windows), of MPS and of CUDA's libraries.
_SAID: Final = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


class Room:
    """Remembers how many images fit into a device's memory.

    Attributes:
        size: Largest number of images that may still fit, after the trials so far.
    """

    def __init__(self) -> None:
        self.size = MOST
        self._tried: WeakKeyDictionary[Forward, int] = WeakKeyDictionary()

    def fitted(self, model: Forward, x: Tensor) -> Forward:
        """Return a function equal to the model that passes a batch in parts if the whole batch does not fit.

        On an accelerator, a forward and a backward pass over some of the images are tried first. If memory runs out,
        the trial is repeated with half as many. On the CPU there is no trial, which would cost more than it saves:
        `size` shrinks when memory runs out in an ordinary pass.

        Args:
            model: Maps images to logits, frozen.
            x: Some images ``(N, C, H, W)``, for their shape and device; not changed.
        """
        if x.device.type == "cpu":
            self.size = min(self.size, ON_CPU)
        elif self._tried.get(model, 0) < min(self.size, len(x)):
            self.try_out(model, x[: self.size])
        return Fitted(model, self)

    def try_out(self, model: Forward, x: Tensor) -> None:
        """Try a forward and a backward pass over images, with half of them each time memory runs out; set `size`.

        The random state of the process is the same afterwards.

        Raises:
            RuntimeError: If a single image does not fit.
        """
        devices = [x.device] if x.is_cuda else []
        while True:
            with torch.random.fork_rng(devices=devices):
                fits = _fits(model, x)
            if fits:
                self._tried[model] = len(x)
                return
            if x.is_cuda:
                torch.cuda.empty_cache()  # Free the cached blocks of the larger pass that failed.
            self.size = len(x) // 2
            x = x[: self.size]


class Fitted:
    """A model that passes a batch in parts if the whole batch does not fit into memory.

    Each part is passed forward in turn, and once more in the backward pass (activation checkpointing), so that memory
    holds the graph of one part at a time. The logits and gradients do not depend on the parts, beyond rounding.
    """

    def __init__(self, model: Forward, room: Room) -> None:
        self.model = model
        self.room = room

    def __call__(self, z: Tensor) -> Tensor:
        """Return the logits of images ``(batch, C, H, W)``."""
        if len(z) <= self.room.size:
            try:
                return self.model(z)
            except RuntimeError as error:
                if len(z) == 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, because the error keeps the tensors of the failed pass alive.
            self.room.size = len(z) // 2
            self.room.try_out(self.model, z.detach()[: self.room.size])
        parts = z.split(self.room.size)
        if not torch.is_grad_enabled():
            return torch.cat([self.model(part) for part in parts])
        return torch.cat([checkpoint(self.model, part, use_reentrant=False) for part in parts])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that a device's memory has run out."""
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _SAID)


def _fits(model: Forward, x: Tensor) -> bool:
    """Return whether a forward and a backward pass over images fit into memory, which is free again afterwards."""
    try:
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            spare = [torch.empty_like(z) for _ in range(_COPIES)]
            logits = model(z)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), z, allow_unused=True)
            del spare
    except RuntimeError as error:
        if len(x) == 1 or not is_out_of_memory(error):
            raise
        return False
    return True
