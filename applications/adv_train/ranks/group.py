"""The processes that train together, and their exchange of tensors and objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from adv_train.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The group of processes to which this process belongs. All of them must make the same calls in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def add(self, found: Tensor) -> Tensor:
        """Return the sum over the ranks, equal bit for bit on all of them; the call may overwrite the tensor.

        Raises:
            UserError: If another rank has ended.
        """
        if self.size == 1:
            return found
        found = found.contiguous()
        with self._together():
            dist.all_reduce(found)
        return found

    def first_of(self, found: Tensor) -> Tensor:
        """Return the first rank's tensor on all ranks; the call may overwrite the argument."""
        if self.size == 1:
            return found
        found = found.contiguous()
        with self._together():
            dist.broadcast(found, 0)
        return found

    def rows_of_all(self, own: Tensor, whole: int) -> Tensor:
        """Return all rows of a tensor whose row i is on rank `i % size`.

        Args:
            own: The rows of this rank.
            whole: Number of rows on all ranks together.
        """
        if self.size == 1:
            return own
        most = -(-whole // self.size)
        filled = own.new_zeros(most, *own.shape[1:])
        filled[: len(own)] = own
        parts = [torch.empty_like(filled) for _ in range(self.size)]
        with self._together():
            dist.all_gather(parts, filled)
        return torch.stack(parts, 1).flatten(0, 1)[:whole]

    def wait(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.size > 1:
            with self._together():
                dist.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first rank run the block before the others do, for instance to download a file once."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def every(self, found: T) -> list[T]:
        """Return the objects of all ranks in their order; they are exchanged by pickle."""
        if self.size == 1:
            return [found]
        everyone: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(everyone, found)
        return everyone

    def agree(self, found: object, what: str) -> None:
        """Check that an object is equal on all ranks; `what` names it in the error.

        Raises:
            UserError: On all ranks, if it is not.
        """
        everyone = self.every(found)
        other = next((rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]), None)
        if other is not None:
            raise UserError(
                f"{what} must be the same on all ranks, but rank {other} differs from rank 0: start all ranks with the "
                "same command and the same folders."
            )

    def device(self, found: torch.device) -> torch.device:
        """Return the device of this rank: for `cuda`, the GPU with the rank's number on this machine.

        Raises:
            UserError: If there are fewer GPUs than ranks, a GPU is chosen by its number, or several ranks cannot train
                on this kind of device.
        """
        if self.size == 1 or found.type == "cpu":
            return found
        if found.type != "cuda" or found.index is not None:
            raise UserError(f"Several processes train on `cuda` (each on a GPU of its own) or `cpu`, not on `{found}`.")
        place, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if place >= there:
            raise UserError(
                f"Each process needs a GPU of its own, but this machine has {there}: use --nproc-per-node {there}."
            )
        return torch.device("cuda", place)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # torch has no class for gloo's
                raise
            reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
            raise UserError(f"Stopped, because another rank has ended or does not answer ({reason}).") from error


ALONE: Final = Ranks()


def current() -> Ranks:
    """Return the processes of the default group of `torch.distributed`, or this process alone if there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())
