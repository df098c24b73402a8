"""A step of a method as `adv-train fit --accelerate` takes it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from adv_train.accelerate import captured


def prepared(accelerate: str, step: Callable[[], object], device: torch.device) -> tuple[Callable[[], object], float]:
    """Return what takes the step, and the seconds until it could: with a first step, which captures or compiles.

    Args:
        accelerate: `graph` or `compile`.
        step: of a method, for `compile` on a compiled model; it draws from the default generator.
        device: where.
    """
    begun = time.perf_counter()
    if accelerate == "compile":
        step()
        return step, time.perf_counter() - begun
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step()
    replay = captured(step, stream).replay
    torch.cuda.synchronize(device)
    return replay, time.perf_counter() - begun
