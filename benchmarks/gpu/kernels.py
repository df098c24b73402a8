"""Where the time of a step goes: the share of each family of kernels, which are recognised by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

# Without this, torch's profiler writes to the terminal.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

OTHER: Final = "other"
#: For each family a pattern of its kernels' names, in any case; the first match counts. Batch norm comes before its
#: reductions, products before the copies that CUTLASS names in its kernels, and copies before elementwise kernels,
#: because torch copies with these. A kernel over a list of tensors belongs to the optimiser, to clipping or to the
#: average of the weights. `aten::` names are those of operators on a CPU.
FAMILIES: Final[dict[str, str]] = {
    "normalisation": r"batch_?norm|\bbn_?[fb]w|layer_?norm|group_?norm",
    "convolution, matmul": (
        r"gemm|gemv|xmma|cutlass|nvjet|scudnn|splitk|wgrad|dgrad|fprop|winograd|conv(?!er)|\bfft|\bcask"
        r"|precompute_indices|computeoffsets|aten::(\w*mm|linear|mv|addmv|dot)\b"
    ),
    "copies, layout": (
        r"memcpy|memset|copy|nchwtonhwc|nhwctonchw|converttensor|transpose|catarray|aten::(to|clone|contiguous|cat)\b"
    ),
    "optimiser": r"multi_tensor_apply|aten::_(fused|foreach)_",
    "reductions": (
        r"reduce|softmax|nll_loss|pool|aten::(sum|mean|a?max|a?min|argmax|norm|linalg_vector_norm|any|all)\b"
    ),
    "elementwise": (
        r"elementwise|aten::(add|sub|rsub|mul|div|neg|abs|sign|sgn|sqrt|rsqrt|reciprocal|pow|exp|log|relu|clamp"
        r"|clamp_min|clamp_max|threshold|threshold_backward|where|lerp|addcmul|addcdiv|fill|zero|uniform|normal"
        r"|eq|ne|gt|ge|lt|le|minimum|maximum|logical_\w+|bitwise_\w+)_?\b"
    ),
}
#: The same for kernels of `torch.compile`, which are named after their kind and the operators that they hold.
_COMPILED: Final[dict[str, str]] = {
    "convolution, matmul": r"^triton_tem_",
    "normalisation": r"batch_norm",
    "copies, layout": r"^triton_poi_fused_(_to_copy|clone|copy_?)_\d+$",
    "reductions": r"^triton_(red|per|split)_",
    "elementwise": r"^triton_",
}


def family(kernel: str) -> str:
    """Return the family of a kernel, or on a CPU of an operator, by its name."""
    table = _COMPILED if kernel.startswith("triton_") else FAMILIES
    return next((name for name, pattern in table.items() if re.search(pattern, kernel, re.IGNORECASE)), OTHER)


def shares(step: Callable[[], object], device: torch.device, *, steps: int) -> tuple[dict[str, float], float]:
    """Run some steps under torch's profiler.

    On a CUDA device the time is that of its kernels and copies; on a CPU, that of the operators without those that
    they call.

    Args:
        step: the function to run, already warmed up.
        device: device of the step.
        steps: number of runs.

    Returns:
        The share of each family in the time, and the milliseconds a step that the shares refer to. The shares add up
        to 1, or are all 0 if the profiler recorded nothing.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = summed(profiler.events(), on_gpu=on_gpu)
    whole = sum(found.values())
    return {name: time / (whole or 1.0) for name, time in found.items()}, whole / steps / 1e3


def summed(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Return the microseconds of each family among the profiler's events.

    Named ranges, such as a step of the optimiser, do not count: the kernels in them are events of their own.
    """
    found = dict.fromkeys((*FAMILIES, OTHER), 0.0)
    for event in events:
        if not event.is_user_annotation and (event.device_type.name == "CUDA") == on_gpu:
            found[family(event.name)] += event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
    return found
