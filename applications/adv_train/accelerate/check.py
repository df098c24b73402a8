"""Check, before anything is written, that this machine supports the chosen value of `accelerate`."""

from __future__ import annotations

import torch

from adv_train.errors import UserError
from adv_train.ranks import current


def check(accelerate: str, device: torch.device) -> None:
    """Check that this machine supports the chosen value of `accelerate`.

    Args:
        accelerate: `off`, `graph` or `compile`.
        device: The device that trains.

    Raises:
        UserError: If there are several processes, if `graph` is chosen without a CUDA device, or if `compile` is chosen
            and a function of one line does not compile, for instance because there is no compiler.
    """
    if accelerate != "off" and current().size > 1:
        raise UserError(f"`accelerate` {accelerate} trains in one process: with several, use --accelerate off.")
    if accelerate == "graph" and device.type != "cuda":
        raise UserError(f"`accelerate` graph needs a CUDA device, but this run is on {device}: use compile or off.")
    if accelerate != "compile":
        return
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # dynamo, inductor and the system raise many types, which all mean the same here
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"`accelerate` compile does not work here ({lines[0] if lines else type(error).__name__}): install a C++ "
            "compiler such as g++ (on a GPU also Triton), or use --accelerate off."
        ) from error
