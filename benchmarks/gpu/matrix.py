"""The speed of matrix products on a device, with which training steps are compared."""

from __future__ import annotations

import statistics

import torch

from adv_train.bench.count import flops
from adv_train.bench.timing import interleaved
from adv_train.precision import computed_in

#: Side of the matrices: on a GPU large enough that the launch costs nothing. Only tests use the rate of a CPU.
SIDES = {"cuda": 8192, "cpu": 128}
_REPEATS = 5


def rate(precision: str, device: torch.device) -> float:
    """Return the floating point operations a second in a product of two square matrices, by the median of repeats.

    Args:
        precision: one of `adv_train.precision.PRECISIONS`.
        device: device of the matrices.
    """
    side, generator = SIDES[device.type], torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32  # autocast would convert them in every repeat
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    with computed_in(precision, device):
        (seconds,) = interleaved([lambda: left @ right], repeats=_REPEATS, device=device, progress=False)
        return flops(lambda: left @ right) / statistics.median(seconds)
