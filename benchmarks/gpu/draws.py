"""The same random numbers on every device, so that computations that draw can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWING = ("uniform_", "normal_", "exponential_", "bernoulli_")


class DrawnOnCPU(TorchDispatchMode):
    """Makes in-place draws in double precision on the CPU, whatever the device and dtype of the tensor.

    Args:
        seed: seed of the numbers; a generator passed by the caller is not used.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.overloadpacket.__name__ not in _DRAWING:
            return function(*args, **(kwargs or {}))
        filled, *rest = args
        options = {**(kwargs or {}), "generator": self._generator}
        return filled.copy_(function(torch.empty(filled.shape, dtype=torch.float64), *rest, **options))
