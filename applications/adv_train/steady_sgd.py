"""SGD whose learning rate and momentum may be tensors that a CUDA graph reads in every replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SteadySGD(torch.optim.SGD):
    """The update and the options of `torch.optim.SGD`, computed without reading a number on the host.

    `lr`, and a momentum that is not zero, may be tensors of shape `()` on the parameters' device. torch's own class
    reads them on the host. With single-precision weights on a CPU both make the same weights, bit for bit.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the parameters along their gradients; a closure that computes them again is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [value for value in group["params"] if value.grad is not None]
            if moved:
                self._move(group, moved, [value.grad for value in moved])
        return loss

    def _move(self, group: dict[str, Any], params: list[Tensor], slopes: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        if group["maximize"]:
            slopes = list(torch._foreach_neg(slopes))
        if group["weight_decay"] != 0:
            slopes = list(torch._foreach_add(slopes, params, alpha=group["weight_decay"]))
        if isinstance(momentum, Tensor) or momentum != 0:
            first = any("momentum_buffer" not in self.state[value] for value in params)
            for value, slope in zip(params, slopes, strict=True) if first else ():
                self.state[value]["momentum_buffer"] = slope.detach().clone()
            buffers = [self.state[value]["momentum_buffer"] for value in params]
            if not first:
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, slopes, alpha=1 - group["dampening"])
            ahead = torch._foreach_addcmul
            slopes = list(ahead(slopes, buffers, _times(momentum, slopes))) if group["nesterov"] else buffers
        # One rounding, as that of torch's `add` with a number; multiplying first would make two.
        torch._foreach_addcmul_(params, slopes, _times(lr, params), value=-1)


def _times(number: Tensor | float, like: list[Tensor]) -> list[Tensor]:
    made = number if isinstance(number, Tensor) else like[0].new_full((), number)
    return [made] * len(like)
