"""Replace the layers whose second derivatives torch computes slowly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from adv_train.second_derivatives.batch_norm import batch_norm
from adv_train.second_derivatives.convolution import convolution

_hooks_of_saved_tensors: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
#: Whether this torch tells what `_transformed` asks.
SUPPORTED = _hooks_of_saved_tensors is not None
_OURS: dict[Callable[..., Any], Callable[..., Any]] = {F.conv2d: convolution, F.batch_norm: batch_norm}


def fast_second_derivatives(wanted: bool = True) -> AbstractContextManager[object]:
    """Compute convolutions and BatchNorm within the block so that their second derivatives are fast.

    torch computes the second derivative of a convolution by a convolution whose kernel is as large as the image, and
    that of BatchNorm in train mode by about twenty operations on whole tensors. Here, both call the kernels of the
    first derivative, and BatchNorm needs six more operations. All results agree with those of torch within rounding.

    Left to torch are convolutions of contiguous images on a CPU, where its way is as fast, and layers inside
    `torch.func` transforms, forward-mode derivatives, compiled code and checkpoints. A torch that does not tell whether
    a layer is inside a checkpoint, such as 2.7, computes all layers itself.

    Args:
        wanted: False leaves all layers to torch.
    """
    return _Replacing() if wanted and SUPPORTED and torch.is_grad_enabled() else nullcontext()


class _Replacing(TorchFunctionMode):
    """Call our function in place of torch's; a call that our function does not support is left to torch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        ours, kwargs = _OURS.get(func), kwargs or {}
        found = None if ours is None or _transformed() else ours(*args, **kwargs)
        return func(*args, **kwargs) if found is None else found


def _transformed() -> bool:
    """Return whether something other than plain autograd executes the layer."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        # A checkpoint repeats its layers in the backward pass, outside this mode, and must save the same tensors again.
        or _hooks_of_saved_tensors(False) is not None
    )
