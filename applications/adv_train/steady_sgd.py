"""SGD whose learning rate and momentum may be tensors that a CUDA graph reads in every replay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

#: The options of `torch.optim.SGD` that `_move` applies.
_APPLIED: Final = {"params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"}
#: All other options of the installed torch, `foreach` apart: they are refused where they are set.
_OTHERS: Final = set(inspect.signature(torch.optim.SGD).parameters) - _APPLIED - {"foreach"}


class SteadySGD(torch.optim.SGD):
    """The update of `torch.optim.SGD`, computed without reading a number on the host.

    `lr`, and a momentum that is not zero, may be tensors of shape `()` on the parameters' device. torch's own class
    reads them on the host. With single-precision weights on a CPU both make the same weights, bit for bit.

    Raises:
        ValueError: For an option that would have no effect, such as `fused` or `foreach=False`: all weights are always
            updated together by the foreach operations. Also for such an option of a parameter group, and in a state
            that is loaded.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its own options replace those of the optimiser."""
        _require_effect({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for group in state_dict["param_groups"]:
            _require_effect(group)
        super().load_state_dict(state_dict)

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
            known = [index for index, value in enumerate(params) if "momentum_buffer" in self.state[value]]
            if known:
                buffers = [self.state[params[index]]["momentum_buffer"] for index in known]
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, [slopes[index] for index in known], alpha=1 - group["dampening"])
            for index in set(range(len(params))).difference(known):  # their first step
                self.state[params[index]]["momentum_buffer"] = slopes[index].detach().clone()
            buffers = [self.state[value]["momentum_buffer"] for value in params]
            ahead = torch._foreach_addcmul
            slopes = list(ahead(slopes, buffers, _times(momentum, slopes))) if group["nesterov"] else buffers
        # One rounding, as that of torch's `add` with a number; multiplying first would make two.
        torch._foreach_addcmul_(params, slopes, _times(lr, params), value=-1)


def _times(number: Tensor | float, like: list[Tensor]) -> list[Tensor]:
    made = number if isinstance(number, Tensor) else like[0].new_full((), number)
    return [made] * len(like)


def _require_effect(options: Mapping[str, Any]) -> None:
    """Raise if one of these options would have no effect.

    Raises:
        ValueError: With the names of all such options.
    """
    found = sorted(key for key in _OTHERS if options.get(key))
    if options.get("foreach") is not None and not options["foreach"]:
        found.append("foreach=False")
    if found:
        names = ", ".join(f"`{key}`" for key in found)
        raise ValueError(
            f"{names} would have no effect: a captured step updates all weights by torch's foreach operations. "
            "Leave it out, or train with `accelerate` off (`torch.optim.SGD` outside a CUDA graph)."
        )
