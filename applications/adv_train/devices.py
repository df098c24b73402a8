"""Which devices there are, and one line for a device that is not."""

from __future__ import annotations

import torch

from adv_train.errors import UserError, unknown
from adv_train.ranks import current


def available_devices() -> tuple[str, ...]:
    """Names of the devices on this machine, the fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return tuple([*(["cuda", *cuda] if cuda else []), *mps, "cpu"])


def find_device(name: str) -> torch.device:
    """Give the device of a name; ``auto`` is the fastest there is.

    Raises:
        UserError: When there is no such kind of device, or not on this machine.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name in available:
        return torch.device(name)
    kind, _, index = name.partition(":")
    if kind in ("cuda", "mps") and (not index or index.isdecimal()):
        raise UserError(f"PyTorch finds no device `{name}` on this machine. Available: {', '.join(available)}.")
    raise unknown("device", name, {"auto", "cuda", "mps", *available})


def own_device(name: str) -> torch.device:
    """Give the device of a name for this rank: of several, each has a GPU of its own.

    Raises:
        UserError: As `find_device`, and where there are fewer GPUs than ranks on this machine.
    """
    return current().device(find_device(name))
