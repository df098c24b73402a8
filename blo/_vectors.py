"""Inner products, norms and histories of flat vectors of shape `(*lanes, n)`, one for each lane."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true_on_cpu

#: A norm in double precision between this and its inverse is exact to rounding.
_SAFE = 1e-145


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each lane, shape `(*lanes, 1)`."""
    return (a * b).sum(-1, keepdim=True)


def norm(v: Tensor) -> Tensor:
    """Return the 2-norm of each lane, shape `(*lanes, 1)`."""
    found: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return found


def length(v: Tensor, *, keepdim: bool = True) -> Tensor:
    """Like `norm`, but without underflow or overflow of the squares, as those of small float32 numbers.

    The shape is `(*lanes, 1)`, or `lanes` without `keepdim`.
    """
    # Devices of type MPS have no double precision.
    wide = v.dtype is not torch.float64 and v.device.type != "mps"
    found: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=keepdim, dtype=torch.float64 if wide else None)
    if wide:
        return found.to(v.dtype)
    if all_true_on_cpu((found > _SAFE) & (found < 1 / _SAFE)):
        return found
    size = v.abs().amax(-1, keepdim=True)
    size = torch.where((size > 0) & torch.isfinite(size), size, 1.0)
    found = torch.linalg.vector_norm(v / size, dim=-1, keepdim=True) * size
    return found if keepdim else found.squeeze(-1)


def stepped(size: Tensor) -> Tensor:
    """Return a positive size rounded up to a power of the eighth root of two, without a graph.

    The result is locally constant. So steps that contain it instead of the size are differentiated correctly, although
    no derivative passes through it.
    """
    return size.detach().log2().mul(8.0).ceil().div(8.0).exp2()


def irregular(n: int, like: Tensor) -> Tensor:
    """Return the cosines of the squares of 1 to n, shape `(n,)`, in at least single precision, on the device of `like`.

    In half precision the square of 256 overflows.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(1, n + 1, dtype=dtype, device=like.device).square().cos()


def push(past: Tensor, new: Tensor) -> Tensor:
    """Return a history without its oldest vector and with `new` at the end.

    Args:
        past: vectors, oldest first, shape `(*lanes, memory, n)`.
        new: shape `(*lanes, n)`.
    """
    # A new tensor instead of a write in place: `Unrolled` differentiates through earlier histories.
    return torch.cat([past[..., 1:, :], new.unsqueeze(-2)], dim=-2)
