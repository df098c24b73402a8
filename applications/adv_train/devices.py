"""Find the available devices, and report a device that is not available."""

from __future__ import annotations

import torch

from adv_train.errors import UserError, unknown
from adv_train.ranks import current


def available_devices() -> tuple[str, ...]:
    """Return the names of the devices on this machine, the fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return tuple([*(["cuda", *cuda] if cuda else []), *mps, "cpu"])


def find_device(name: str) -> torch.device:
    """Return the device with a name; ``auto`` is the fastest available.

    Raises:
        UserError: If the name is unknown, or this machine has no such device.
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
    """Return the device with a name for this rank; of several ranks on a machine, each has its own GPU.

    Raises:
        UserError: As in `find_device`, and if this machine has fewer GPUs than ranks.
    """
    return current().device(find_device(name))
