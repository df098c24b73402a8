"""A device for tests that none of them needs to have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Torch's device without storage. Like an accelerator it refuses to meet tensors on the CPU; it computes shapes alone.
DEVICE = torch.device("meta")


class Accelerator(TorchDispatchMode):
    """Lets `DEVICE` stand for an accelerator: counts how often the program waits for a value, which is always zero."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device == DEVICE:
            self.waits += 1
            return torch.zeros((), dtype=args[0].dtype).item()
        leaves = torch.device(kwargs.get("device") or DEVICE) != DEVICE
        if function is torch.ops.aten._to_copy.default and leaves and args[0].device == DEVICE:
            self.waits += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return function(*args, **kwargs)


class Recorder(TorchDispatchMode):
    """Records the operations that reach the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


def there(*shape: int) -> Tensor:
    """Return a tensor of doubles on the device."""
    return torch.empty(shape, dtype=torch.float64, device=DEVICE)
