"""Autocast in a backward pass: that of the forward pass it belongs to."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Backward: TypeAlias = Callable[..., tuple[Tensor | None, ...]]
_DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True)
class Autocast:
    """The state of autocast, one device type a setting.

    A user leaves `torch.autocast` before calling `.backward()`, yet the products made there are derivatives of what
    was computed inside it.

    Attributes:
        settings: whether autocast is on, and its dtype.
    """

    settings: tuple[tuple[bool, torch.dtype], ...]

    @classmethod
    def current(cls) -> Autocast:
        """Return the state in force."""
        return cls(tuple((torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in _DEVICE_TYPES))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put the state in force again, for a while."""
        present = Autocast.current().settings
        with contextlib.ExitStack() as stack:
            for kind, setting, now in zip(_DEVICE_TYPES, self.settings, present, strict=True):
                if setting != now:
                    enabled, dtype = setting
                    stack.enter_context(torch.autocast(kind, dtype, enabled))
            yield


def as_in_forward(backward: Backward) -> Backward:
    """Run the backward pass of a `Function` under the state that its `setup_context` left in `ctx.autocast`."""

    @functools.wraps(backward)
    def restored(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.autocast.restored():
            return backward(ctx, *cotangents)

    return restored
