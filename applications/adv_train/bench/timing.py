"""Wall time of training steps, as ratios within one run."""

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
    """Return the seconds of every call, after one warm-up each.

    The functions take turns, so that a machine whose speed drifts slows all of them alike.

    Args:
        functions: what to time.
        repeats: counted rounds.
        device: waited for before each reading of the clock.
        progress: show a bar on stderr.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for round_ in tqdm(range(-1, repeats), desc="timing", unit="round", disable=not progress):
        for function, taken in zip(functions, seconds, strict=True):
            _wait(device)
            begin = time.perf_counter()
            function()
            _wait(device)
            if round_ >= 0:
                taken.append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Sequence[float], floor: Sequence[float]) -> float:
    """Return the median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(seconds, floor, strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
