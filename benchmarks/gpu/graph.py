"""A training step as one CUDA graph: what its launches cost is what a replay saves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


def replayed(step: Callable[[], dict[str, Tensor]], *, repeats: int) -> tuple[float, float]:
    """Capture a step and replay it.

    Args:
        step: a function that returns the gradients by name; it draws no random numbers and never waits for the device.
        repeats: timed replays.

    Returns:
        Median milliseconds of a replay, and the largest relative difference of a gradient from an eager step.

    Raises:
        RuntimeError: when the step cannot be captured.
    """
    eager = {name: grad.detach().clone() for name, grad in step().items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    norm = torch.linalg.vector_norm
    apart = max(float(norm(found[name] - eager[name]) / norm(eager[name]).clamp(min=1e-30)) for name in eager)
    return 1e3 * statistics.median(seconds), apart
