"""The processes of a group, and their three collective operations."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist  # without the names below where torch was built without it

from blo.errors import RankError, StructureError

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Ranks:
    """Two or more processes of which this is one.

    Attributes:
        known: their process group, held weakly: an objective or a result must not keep the threads of a destroyed group
            alive, which would abort the process at exit.
        size: the number of processes.
        rank: the number of this one in the group.
        host: whether the group has a backend for tensors on the CPU, which needs no synchronisation of an accelerator.
    """

    known: weakref.ReferenceType[Any]
    size: int
    rank: int
    host: bool

    @classmethod
    def of(cls, group: Any) -> Ranks | None:
        """Return the processes of a group, by default all of them; None if there is only one.

        Raises:
            StructureError: if there are several, but the process group was not initialised; if this process is not in
                the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            started = os.environ.get("WORLD_SIZE", "1")
            if started.strip() != "1" or group is not None:
                found = "a `group` was given" if group is not None else f"WORLD_SIZE={started} in the environment"
                raise StructureError(
                    f"`blo.distributed` needs torch.distributed.init_process_group() before its first evaluation: "
                    f"{found}, but this process is in no process group, so its share would count as all the data."
                )
            return None
        group = dist.group.WORLD if group is None else group
        rank = dist.get_rank(group)
        if rank < 0:
            raise StructureError(
                f"`group` must hold every process that evaluates the objective, but this one, rank {dist.get_rank()} "
                "of all, is not in it. Evaluate the objective in the processes of its group only."
            )
        size = dist.get_world_size(group)
        return None if size == 1 else cls(weakref.ref(group), size, rank, "cpu:" in dist.get_backend_config(group))

    @property
    def group(self) -> Any:
        """The process group.

        Raises:
            RankError: if it has been destroyed.
        """
        group = self.known()
        if group is None:
            raise RankError(
                "the process group has been destroyed, but derivatives and reports of results that were computed in it "
                "still need it. Call destroy_process_group() later."
            )
        return group

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over all ranks, equal bit for bit on each, by one all-reduce for each dtype and device."""
        totals = list(tensors)
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for place, tensor in enumerate(tensors):
            kinds.setdefault((tensor.dtype, tensor.device), []).append(place)
        for (dtype, _), places in kinds.items():
            packed = torch.cat([tensors[place].reshape(-1) for place in places])
            # In half precision each addition would round the partial sum to 11 or 8 bits.
            packed = packed.float() if dtype in _HALF else packed
            self._call(dist.all_reduce, packed)
            parts = packed.to(dtype).split([tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                totals[place] = part.clone().reshape(tensors[place].shape)  # outputs that share memory are views
        return totals

    def table(self, row: Sequence[int], device: torch.device) -> list[list[int]]:
        """Return the rows of all ranks, all of equal length; synchronises an accelerator if there is no CPU backend."""
        mine = torch.tensor(row, dtype=torch.int64, device="cpu" if self.host else device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        self._call(dist.all_gather, rows, mine)
        table: list[list[int]] = torch.stack(rows).tolist()
        return table

    def words(self, text: str) -> list[str]:
        """Return the text of each rank."""
        said: list[str] = [""] * self.size
        self._call(dist.all_gather_object, said, text)
        return said

    def _call(self, collective: Callable[..., object], *arguments: Any) -> None:
        try:
            collective(*arguments, group=self.group)
        except RuntimeError as error:  # what every backend raises
            raise RankError(
                f"rank {self.rank} of {self.size} got no answer from the others: {str(error).splitlines()[0]} Either "
                "one of them has failed, which its own output explains, or it does not make the same calls: all ranks "
                "must evaluate the same objectives in the same order, also when a report is read. The `timeout` of "
                "init_process_group sets how long a rank waits."
            ) from error
