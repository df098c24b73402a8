"""Whether this machine can do what `accelerate` asks for, found out before anything is written."""

from __future__ import annotations

import torch

from adv_train.errors import UserError


def check(accelerate: str, device: torch.device) -> None:
    """Refuse a choice that the machine cannot follow.

    Args:
        accelerate: `off`, `graph` or `compile`.
        device: That trains.

    Raises:
        UserError: For `graph` without a CUDA device, and for `compile` where a function of one line does not compile,
            for want of a compiler for instance.
    """
    if accelerate == "graph" and device.type != "cuda":
        raise UserError(f"`accelerate` graph needs a CUDA device, but this run is on {device}: use compile or off.")
    if accelerate != "compile":
        return
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of dynamo, inductor, or the system; each means the same
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"`accelerate` compile does not work here ({lines[0] if lines else type(error).__name__}): install a C++ "
            "compiler such as g++ (on a GPU also Triton), or use --accelerate off."
        ) from error
