"""How many images a device holds in one pass of a model: as many as its memory takes, found by trying."""

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
"""Images to begin with on an accelerator: more than this are no faster."""

ON_CPU: Final = 512
"""Images to begin with on the CPU, which is no faster with more."""

_COPIES: Final = 8
"""Of the images, for which a trial leaves memory: an attack keeps its iterates, gradients and the best of each."""

# Of the allocators of the CPU (on Linux, on Windows), of MPS and of CUDA's libraries.
_SAID: Final = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


class Room:
    """What is known of a device's memory.

    Attributes:
        size: Images that fit, as far as is known.
    """

    def __init__(self) -> None:
        self.size = MOST
        self._tried: WeakKeyDictionary[Forward, int] = WeakKeyDictionary()

    def fitted(self, model: Forward, x: Tensor) -> Forward:
        """Give a function like the model, which takes as many images as it is given and never more at once than fit.

        On an accelerator a pass forward and back over some of the images is tried first, and with half as many where
        memory runs out. On the CPU, where a trial costs more than it tells, memory has to run out by itself.

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
        """Pass images forward and back, half of them where memory runs out, and so on; `size` is what worked.

        The random state of the process is left as it was.

        Raises:
            RuntimeError: When one image is too much.
        """
        devices = [x.device] if x.is_cuda else []
        while True:
            with torch.random.fork_rng(devices=devices):
                fits = _fits(model, x)
            if fits:
                self._tried[model] = len(x)
                return
            if x.is_cuda:
                torch.cuda.empty_cache()  # Blocks of the larger size are of no use any more.
            self.size = len(x) // 2
            x = x[: self.size]


class Fitted:
    """A model that is shown no more images at once than fit.

    Where a batch is larger, its parts are passed forward in turn, and once more when their gradient is wanted, so that
    memory holds the graph of one part alone. What a sample gets does not depend on that, beyond rounding.
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
            # Not in the handler: the error holds on to what the failed pass allocated.
            self.room.size = len(z) // 2
            self.room.try_out(self.model, z.detach()[: self.room.size])
        parts = z.split(self.room.size)
        if not torch.is_grad_enabled():
            return torch.cat([self.model(part) for part in parts])
        return torch.cat([checkpoint(self.model, part, use_reentrant=False) for part in parts])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a device's memory has run out."""
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _SAID)


def _fits(model: Forward, x: Tensor) -> bool:
    """Whether a pass forward and back over images works; what it allocates is free again afterwards."""
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
