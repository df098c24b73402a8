"""Processes that `torchrun` has started become ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from adv_train.errors import UserError
from adv_train.launched import launched
from adv_train.ranks.group import Ranks, current


@contextmanager
def started(device: torch.device) -> Iterator[Ranks]:
    """Join the process group of the processes that were started together, and leave it in the end.

    A process that fails does not wait for the others: its end is what tells them.

    Args:
        device: On which kind of device they train: gloo connects CPUs, nccl GPUs.

    Raises:
        UserError: When the processes do not find each other, or each a device of its own.
    """
    asked = Ranks(*launched())
    if asked.size == 1 or current().size > 1:
        yield current()
        return
    own = asked.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"The {asked.size} processes do not find each other ({reason}).") from error
    yield current()
    current().wait()
    if own.type == "cpu":
        time.sleep(0.2)  # torch 2.7 may hang where a group is destroyed while its thread frees the last tensors
    dist.destroy_process_group()
