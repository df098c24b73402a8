"""A step of a method, accelerated as by `adv-train fit --accelerate`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from adv_train.accelerate import captured


def prepared(accelerate: str, step: Callable[[], object], device: torch.device) -> tuple[Callable[[], object], float]:
    """Return a function that takes the accelerated step, and the seconds that capture or compilation took.

    Args:
        accelerate: `graph` or `compile`.
        step: The step of a method, for `compile` on a compiled model; it draws from the default generator.
        device: The device that computes.
    """
    # The first eager step is part of the time: compilation happens in it, and a capture needs it.
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
