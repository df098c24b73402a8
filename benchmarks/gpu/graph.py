"""A training step as one CUDA graph: what its launches cost is what a replay saves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Captured(TorchDispatchMode):
    """Notes what a graph cannot hold, on any device.

    Attributes:
        obstacles: names of the operators that read a value on the host, whose shapes follow from values, or that move
            values between devices.
    """

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
    if function is torch.ops.aten.index.Tensor:  # with positions its shape is theirs, with a mask it is not
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))


def _moves(function: Any, args: tuple[Any, ...], out: Any) -> bool:
    if function is torch.ops.aten._to_copy.default:
        return bool(out.device != args[0].device)
    if function is torch.ops.aten.copy_.default:
        return bool(args[1].device != args[0].device)
    # `torch.tensor(1.0, device=...)`
    return function is torch.ops.aten.lift_fresh.default and out.device.type != "cpu"


def obstacles(step: Callable[[], object]) -> list[str]:
    """Return what would keep a step from being captured; without a CUDA device nobody knows better."""
    with Captured() as captured:
        step()
    return sorted(captured.obstacles)


def replayed(step: Callable[[], dict[str, Tensor]], *, repeats: int) -> tuple[float, float]:
    """Capture a step and replay it.

    Args:
        step: a function that returns the gradients by name; it draws from the default generator alone and never waits
            for the device.
        repeats: timed replays.

    Returns:
        Median milliseconds of a replay, and the largest relative difference of a gradient from an eager step.

    Raises:
        RuntimeError: when the step cannot be captured.
    """
    torch.cuda.manual_seed(0)
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
