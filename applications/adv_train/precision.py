"""The arithmetic of a run: single precision, TensorFloat-32, or bfloat16 in all but the critical layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

PRECISIONS: Final = ("fp32", "tf32", "bf16")


@contextmanager
def computed_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute with one of `PRECISIONS` within the block.

    `tf32` and `bf16` use the matrix units of a CUDA device for convolutions and matrix products; on a CPU `tf32` is
    `fp32`. `bf16` is autocast: weights, sums and losses stay in single precision.

    Args:
        precision: One of `PRECISIONS`.
        device: The device that computes.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = precision != "fp32"
    try:
        # Without autocast's cache, which would reuse a cast made without gradient in a pass that needs the gradient.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def at_full_resolution(layer: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer outside autocast, in single precision or wider.

    In bfloat16, a pixel near 1 can take only about eight values within a budget of 8/255, and logits near 10 are 1/16
    apart. Therefore models apply their first layers and the last one through this function.
    """
    if not autocasts(x.device.type):
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(torch.promote_types(x.dtype, torch.float32)))


def autocasts(kind: str) -> bool:
    """Return whether autocast is on for a type of device."""
    # The meta device has no autocast. `torch.amp.is_autocast_available` would say so, but torch 2.7 cannot compile it.
    return kind != "meta" and torch.is_autocast_enabled(kind)
