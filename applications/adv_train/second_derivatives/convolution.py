"""A convolution whose second derivative consists of a convolution's forward and backward kernels.

With the output gradient `g`, the gradients of a convolution `x * w` are bilinear: `gx = T(g, w)` and `gw = C(g, x)`, in
torch `convolution_backward`. For cotangents `hx` of `gx` and `hw` of `gw`,

    d/dg = hx * w + x * hw,    d/dx = T(g, hw),    d/dw = C(g, hx).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from adv_train.precision import autocasts

_backward = torch.ops.aten.convolution_backward
_Pair: TypeAlias = int | tuple[int, int] | str


def convolution(
    input: Tensor,  # the names of `F.conv2d`, which callers may use
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return `F.conv2d`; None where torch is as fast, without gradients, and for arguments that torch may refuse."""
    x, w, kind = input, weight, input.device.type
    given = [x, w] if bias is None else [x, w, bias]
    if x.ndim != 4 or isinstance(padding, str) or not (x.requires_grad or w.requires_grad):
        return None
    if kind == "cpu" and x.is_contiguous():
        return None
    allowed = {x.dtype}
    if autocasts(kind):
        low = torch.get_autocast_dtype(kind)
        given, allowed = [one.to(low) if one.dtype == torch.float32 else one for one in given], {low}
    x, w, *rest = given
    fits = all(one.is_floating_point() and one.dtype in allowed for one in given)
    if not fits or any(one.shape != w.shape[:1] for one in rest):
        return None
    output: Tensor = _Convolution.apply(x, w, _pair(stride), _pair(padding), _pair(dilation), groups)
    return output + rest[0].view(-1, 1, 1) if rest else output


def _used(node: Any) -> bool:
    """Return whether this backward pass uses the gradient of a node; an attack uses none of the weights."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf that `autograd.grad` asks for
        return True


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        return _convolved(x, w, how)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        wanted = [ctx.needs_input_grad[i] and _used(ctx.next_functions[i][0]) for i in range(2)]
        return (*_Gradients.apply(g, *ctx.saved_tensors, wanted, *ctx.how), *(None,) * len(ctx.how))


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, wanted: list[bool], *how: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, w)
        ctx.how = how
        return _gradients(g, x, w, how, *wanted)

    @staticmethod
    def backward(ctx: Any, hx: Tensor | None, hw: Tensor | None) -> Any:
        (g, x, w), how = ctx.saved_tensors, ctx.how
        to_g = [_convolved(a, b, how) for a, b in ((hx, w), (x, hw)) if a is not None and b is not None]
        gg = sum(to_g[1:], to_g[0]) if to_g and ctx.needs_input_grad[0] else None
        gx = None if hw is None or not ctx.needs_input_grad[1] else _gradients(g, x, hw, how, True, False)[0]
        gw = None if hx is None or not ctx.needs_input_grad[2] else _gradients(g, hx, w, how, False, True)[1]
        return gg, gx, gw, None, *(None,) * len(how)


def _convolved(x: Tensor, w: Tensor, how: tuple[Any, ...]) -> Tensor:
    stride, padding, dilation, groups = how
    # Called inside a backward pass, whose autocast need not be that of the forward pass.
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext():
        return torch.conv2d(x, w, None, stride, padding, dilation, groups)


def _gradients(g: Tensor, x: Tensor, w: Tensor, how: tuple[Any, ...], of_x: bool, of_w: bool) -> Any:
    stride, padding, dilation, groups = how
    return _backward(g, x, w, None, stride, padding, dilation, False, [0, 0], groups, [of_x, of_w, False])[:2]
