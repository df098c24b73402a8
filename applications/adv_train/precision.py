"""The arithmetic of a run: single precision, TensorFloat-32, or bfloat16 where that loses nothing that matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

PRECISIONS: Final = ("fp32", "tf32", "bf16")


@contextmanager
def computed_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute with one of `PRECISIONS` for a while.

    `tf32` and `bf16` use the matrix units of a CUDA device for convolutions and products; on a CPU `tf32` is `fp32`.
    `bf16` is autocast: weights, sums and losses stay in single precision.

    Args:
        precision: One of `PRECISIONS`.
        device: Where the computation runs.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = precision != "fp32"
    try:
        # Without the cache: a cast that was made without gradient would be reused where a gradient is wanted.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def at_full_resolution(layer: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer outside autocast, in single precision or wider.

    On a bright pixel bfloat16 has about eight levels in a budget of 8/255, and few for logits of size 10: the first
    layers of a model and its last one are applied through this function.
    """
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return layer(x)
    with torch.autocast(kind, enabled=False):
        return layer(x.to(torch.promote_types(x.dtype, torch.float32)))
