"""BatchNorm in train mode whose second derivative takes one BatchNorm backward pass and a few elementwise operations.

For each channel, let n be the number of entries, m the mean of x, s = 1 / sqrt(var + eps), and r = s (x - m). The
map P v = v - mean(v) - r mean(v r) is symmetric, and the gradients for an output gradient g are

    gx = w s P g,    gw = sum(g r),    gb = sum(g).

Let h be the cotangent of gx, with a = sum(h r) and t = <h, P g> = <h, g> - (sum(h) gb + a gw) / n. torch's backward
kernel, called with h in place of g, returns ph = w s P h, a and sum(h). As dr = s P dx and ds = -s^2 <r, dx> / n, the
derivatives of <h, gx> are

    d/dg = ph,    d/dw = s t,    d/dx = -s (gw ph + a gx + w s t r) / n.

In d/dx, gx is written in terms of g and x, so that no pass has to keep it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_forward, _backward = torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward


def batch_norm(
    input: Tensor,  # the names of `F.batch_norm`, which callers may use
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Return `F.batch_norm`; None in eval mode, which has no slow derivative, and where torch raises an error."""
    channels = input.shape[1]
    if not training or input.numel() <= channels:
        return None
    given = next((one for one in (weight, bias, running_mean) if one is not None), None)
    kind = torch.promote_types(input.dtype, torch.float32) if given is None else given.dtype
    weight = torch.ones(channels, dtype=kind, device=input.device) if weight is None else weight
    bias = torch.zeros_like(weight) if bias is None else bias
    output: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return output


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float, eps: float
    ) -> Any:
        output, m, s = _forward(x, w, b, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, w, m, s)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return (*_Gradients.apply(g, *ctx.saved_tensors, ctx.eps), None, None, None, None)


class _Gradients(torch.autograd.Function):
    """Its inputs m and s are functions of x; `backward` gives the whole derivative to x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, m: Tensor, s: Tensor, eps: float) -> Any:
        ctx.set_materialize_grads(False)
        gx, gw, gb = _gradients(g, x, w, m, s, eps)
        ctx.save_for_backward(g, x, w, m, s, gw, gb)
        ctx.eps = eps
        return gx, gw, gb

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        saved, recorded = ctx.saved_tensors, torch.is_grad_enabled()
        with torch.no_grad():
            found = _second(saved, ctx.eps, *cotangents)
        if recorded:
            found = [one if one is None else _Last.apply(one, *saved[:3], *cotangents) for one in found]
        return (*found, None, None, None)


class _Last(torch.autograd.Function):
    """The identity of a second derivative, whose own derivative is an error."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor | None) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError("The third derivative of BatchNorm in train mode is not supported.")


def _second(
    saved: tuple[Tensor, ...], eps: float, h: Tensor | None, hw: Tensor | None, hb: Tensor | None
) -> list[Tensor | None]:
    """Return the derivatives in g, x and w for the cotangents of gx, gw and gb."""
    g, x, w, m, s, gw, gb = saved
    shape = (-1, *(1,) * (x.ndim - 2))  # of a tensor with one value for each channel
    n = x.numel() / len(s)
    to_g, to_x, to_w = None, None, None
    if h is not None:
        to_g, a, total = _gradients(h, x, w, m, s, eps)
        t = (h.to(s.dtype) * g).sum([0, *range(2, x.ndim)]) - (total * gb + a * gw) / n
        to_w = s * t
        of_g = -w * s.square() * a / n
        of_x = -w * s.pow(3) * t / n - of_g * s * gw / n
        to_x = torch.addcmul((-of_x * m - of_g * gb / n).view(shape), of_x.view(shape), x)
        to_x.addcmul_((-s * gw / n).view(shape), to_g).addcmul_(of_g.view(shape), g)
    if hw is not None:
        to_x = _sum(to_x, hw.view(shape) * _gradients(g, x, torch.ones_like(w), m, s, eps)[0])
        to_g = _sum(to_g, (hw * s).view(shape) * (x - m.view(shape)))
    if hb is not None:
        to_g = _sum(to_g, hb.view(shape).expand_as(g))
    return [None if one is None else one.to(like.dtype) for one, like in ((to_g, g), (to_x, x), (to_w, w))]


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _gradients(g: Tensor, x: Tensor, w: Tensor, m: Tensor, s: Tensor, eps: float) -> Any:
    return _backward(g, x, w, None, None, m, s, True, eps, [True, True, True])
