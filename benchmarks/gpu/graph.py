"""A training step as one CUDA graph: a replay saves the cost of the kernel launches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from adv_train.accelerate import captured


def replayed(step: Callable[[], dict[str, Tensor]], *, repeats: int) -> tuple[float, float]:
    """Capture a step and replay it.

    Args:
        step: a function that returns the gradients by name; it draws from the default generator alone and never waits
            for the device.
        repeats: number of timed replays.

    Returns:
        Median milliseconds of a replay, and the largest relative difference of a gradient from an eager step.

    Raises:
        UserError: if the step cannot be captured.
    """
    torch.cuda.manual_seed(0)
    eager = {name: grad.detach().clone() for name, grad in step().items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    found: dict[str, Tensor] = {}
    graph = captured(lambda: found.update(step()), side)
    torch.cuda.manual_seed(0)
    graph.replay()
    norm = torch.linalg.vector_norm
    apart = max(float(norm(found[name] - eager[name]) / norm(eager[name]).clamp(min=1e-30)) for name in eager)
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds), apart
