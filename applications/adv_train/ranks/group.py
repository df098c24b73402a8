"""The processes that train together, and what they tell each other."""

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
    """The processes of which this is one. All of them make the same calls in the same order.

    Attributes:
        rank: Number of this one, from 0.
        size: How many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and is heard."""
        return self.rank == 0

    def add(self, found: Tensor) -> Tensor:
        """Return the sum over the ranks, equal bit for bit on all of them; the tensor is used up.

        Raises:
            UserError: When another rank has ended.
        """
        if self.size == 1:
            return found
        found = found.contiguous()
        with self._together():
            dist.all_reduce(found)
        return found

    def first_of(self, found: Tensor) -> Tensor:
        """Return what the first rank holds; the tensor is used up."""
        if self.size == 1:
            return found
        found = found.contiguous()
        with self._together():
            dist.broadcast(found, 0)
        return found

    def rows_of_all(self, own: Tensor, whole: int) -> Tensor:
        """Return all rows of what lies row by row on the ranks in turn: row i on rank `i % size`.

        Args:
            own: The rows of this rank.
            whole: Rows of all ranks.
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
        """Go on when all ranks are here."""
        if self.size > 1:
            with self._together():
                dist.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first rank do a thing before the others do it, such as to fetch a file."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def every(self, found: T) -> list[T]:
        """Return what each rank holds, by pickle."""
        if self.size == 1:
            return [found]
        everyone: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(everyone, found)
        return everyone

    def agree(self, found: object, what: str) -> None:
        """Make sure that something is the same on all ranks.

        Raises:
            UserError: On all of them, when it is not.
        """
        everyone = self.every(found)
        other = next((rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]), None)
        if other is not None:
            raise UserError(
                f"{what} must be the same on all ranks, but those of rank {other} are not those of rank 0: give all of "
                "them the same command and the same folders."
            )

    def device(self, found: torch.device) -> torch.device:
        """Return the device of this rank: of GPUs that have no number, the one of its place on this machine.

        Raises:
            UserError: When there are fewer GPUs than ranks, a number is given, or ranks cannot share such a device.
        """
        if self.size == 1 or found.type == "cpu":
            return found
        if found.type != "cuda" or found.index is not None:
            raise UserError(f"Several processes train on `cuda` (each on a GPU of its own) or `cpu`, not on `{found}`.")
        place, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if place >= there:
            raise UserError(f"Each process needs a GPU of its own, and here are {there}: --nproc-per-node {there}.")
        return torch.device("cuda", place)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # torch has no class for gloo's
                raise
            reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
            raise UserError(f"Stopped, since another rank has ended or does not answer ({reason}).") from error


ALONE: Final = Ranks()


def current() -> Ranks:
    """Return the processes of the default group of `torch.distributed`; this one alone where there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())
