"""Wall-clock times of training steps, measured in turns so that their ratios are comparable."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm


def interleaved(
    functions: Sequence[Callable[[], Any]], *, repeats: int, device: torch.device, progress: bool
) -> list[list[float]]:
    """Return the seconds of every call of each function, after one warm-up call each.

    The functions are called in turns, so that a drift in the speed of the machine affects all of them equally, and each
    round runs in the opposite order of the last, because a call also feels what the call before it left in the caches.

    Args:
        functions: The functions to time; those whose ratio matters should stand side by side.
        repeats: Number of timed rounds.
        device: Device that the functions use; its queue is empty at each reading of the clock.
        progress: Show a bar on stderr.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for round_ in tqdm(range(-1, repeats), desc="timing", unit="round", disable=not progress):
        for function, taken in [*zip(functions, seconds, strict=True)][:: -1 if round_ % 2 else 1]:
            _wait(device)
            begin = time.perf_counter()
            function()
            _wait(device)
            if round_ >= 0:
                taken.append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Sequence[float], floor: Sequence[float]) -> float:
    """Return the median over the rounds of the ratio of two times."""
    return statistics.median(a / b for a, b in zip(seconds, floor, strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
