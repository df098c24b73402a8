"""Processes that `torchrun` has started become ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from adv_train.ranks.group import Ranks, current

_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes() -> int:
    """Return how many processes the environment says were started together; 1 where it says nothing."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _SAID) else 1


@contextmanager
def started(device: torch.device) -> Iterator[Ranks]:
    """Join the process group of the processes that were started together, and leave it in the end.

    A process that fails does not wait for the others: its end is what tells them.

    Args:
        device: On which kind of device they train: gloo connects CPUs, nccl GPUs.
    """
    if processes() == 1 or current().size > 1:
        yield current()
        return
    asked = Ranks(int(os.environ["RANK"]), processes())
    own = asked.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    yield current()
    current().wait()
    if own.type == "cpu":
        time.sleep(0.2)  # torch 2.7 may hang where a group is destroyed while its thread frees the last tensors
    dist.destroy_process_group()
