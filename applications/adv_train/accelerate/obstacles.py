"""Finds, on any device, operators that a CUDA graph does not support; they also make the host wait in eager steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Watched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.obstacles: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if _depends_on_values(function, args) or _moves(function, args, out):
            self.obstacles.add(str(function))
        return out


def _depends_on_values(function: Any, args: tuple[Any, ...]) -> bool:
    if function is torch.ops.aten.index.Tensor:  # the output's shape depends on values if the index is a mask
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))


def _moves(function: Any, args: tuple[Any, ...], out: Any) -> bool:
    if function is torch.ops.aten._to_copy.default:
        return bool(out.device != args[0].device)
    if function is torch.ops.aten.copy_.default:
        return bool(args[1].device != args[0].device)
    # Made by `torch.tensor(1.0, device=...)`, which copies from the host.
    return function is torch.ops.aten.lift_fresh.default and out.device.type != "cpu"


def obstacles(step: Callable[[], object]) -> list[str]:
    """Return the sorted names of the operators in a step that a CUDA graph does not support.

    They read a value on the host, have an output whose shape depends on values, or move values between devices.
    """
    with _Watched() as watched:
        step()
    return sorted(watched.obstacles)
