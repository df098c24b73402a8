"""Makes ranks of the processes that `torchrun` has started."""

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
    """Join the process group of the processes that were started together, and leave it at the end of the block.

    A process that fails does not wait for the others: they notice its end.

    Args:
        device: Kind of device on which the processes train: gloo connects CPUs, nccl connects GPUs.

    Raises:
        UserError: If the processes do not find each other, or there is no device for each of them.
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
        raise UserError(f"The {asked.size} processes could not connect to each other ({reason}).") from error
    yield current()
    current().wait()
    if own.type == "cpu":
        time.sleep(0.2)  # torch 2.7 may hang if a group is destroyed while its thread frees the last tensors
    dist.destroy_process_group()
