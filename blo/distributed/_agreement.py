"""Tests that all ranks make the same evaluation: each sends a row of numbers that describes its own."""

from __future__ import annotations

import struct
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain
from blo._transforms import outside_transforms
from blo._types import Tree
from blo.distributed._ranks import Ranks
from blo.errors import RankError, StructureError

#: How many values of an objective can be sent in the row itself, which saves a separate all-reduce.
FEW = 4
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: How many objectives have been evaluated in each group.
_COUNTS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class Row(NamedTuple):
    """The description of an evaluation on one rank.

    Attributes:
        failed: whether the objective raised an exception.
        objective: number of the objective in its group, in order of first evaluation.
        purpose: 0 for the exchange that is made once for each objective, 1 for an evaluation.
        structure: checksum of structure, shapes and dtypes; for an evaluation, the number of its values.
        gradients: a hash of the places of the leaves of theta and z that require grad.
        theta: checksum of theta's leaves; 0 if they are on an accelerator, which it would synchronise.
        z: likewise.
    """

    failed: int
    objective: int
    purpose: int
    structure: int
    gradients: int
    theta: int
    z: int


_RULES = {
    "objective": "evaluate the same objective",
    "purpose": "evaluate the same objective",
    "structure": "have theta, z and values of the same structure, shapes and dtypes",
    "gradients": "require the same gradients",
    "theta": "have the same theta, bit for bit",
    "z": "have the same z, bit for bit",
}


def next_number(ranks: Ranks) -> int:
    """Return the number for an objective that is evaluated for the first time."""
    number = _COUNTS.get(ranks.group, 0)
    _COUNTS[ranks.group] = number + 1
    return number


def structure(theta: Tree, z: Tree) -> tuple[int, str]:
    """Return a checksum of structures, shapes and dtypes, and the text from which it is computed."""
    leaves, spec = tree.flatten((theta, z))
    text = " ".join(f"{[(tuple(leaf.shape), leaf.dtype) for leaf in leaves]} in {spec}".split())
    return zlib.crc32(text.encode()), text


def checksum(leaves: Sequence[Tensor], *, wait: bool = False) -> int:
    """Return a checksum of the bits of tensors; 0 on an accelerator, unless `wait` permits a synchronisation."""
    total = len(leaves)
    with outside_transforms():
        for leaf in leaves:
            bits = plain(leaf).detach()
            if not (wait or bits.device.type == "cpu"):
                return 0
            bits = torch.view_as_real(bits) if bits.is_complex() else bits
            # A sum of integers is the same in any order of addition. As bits, -0 differs from 0, and NaN equals itself.
            found = int(bits.view(_BITS[bits.element_size()]).sum(dtype=torch.int64))
            # Below 2^62, so that it fits the signed 64 bits of an entry of the row.
            total = (31 * total + found + bits.numel()) % 2**62
    return total


def meet(
    ranks: Ranks, row: Row, numbers: Sequence[float], device: torch.device, about: Callable[[], str]
) -> list[list[float]]:
    """Exchange rows and numbers, check that the rows agree, and return the numbers of each rank.

    A rank whose objective failed only informs the others.

    Args:
        ranks: the processes.
        row: the description of this rank's evaluation.
        numbers: sent with the row, at most `FEW`; the same number of them on all ranks if the rows agree.
        device: the device of the row if the group has no backend for the CPU.
        about: returns what this rank evaluates, or why it failed, for an error message if rows differ.

    Raises:
        RankError: if the objective has failed on another rank.
        StructureError: if the rows differ.
    """
    with outside_transforms():
        sent = [*row, *(_to_bits(number) for number in numbers)]
        # `all_gather` needs rows of one length, also from ranks that evaluate different objectives.
        table = ranks.table(sent + [0] * (len(row) + FEW - len(sent)), device)
        rows = [Row(*found[: len(row)]) for found in table]
        if any(other != row or other.failed for other in rows):
            # All ranks have the same table, so all of them make this second exchange, or none.
            words = ranks.words(about())
            if not row.failed:
                _refuse(rows, words)
        return [[_from_bits(bits) for bits in found[len(row) :][: len(numbers)]] for found in table]


def _refuse(rows: Sequence[Row], words: Sequence[str]) -> None:
    failed = [rank for rank, row in enumerate(rows) if row.failed]
    if failed:
        raise RankError(
            f"the objective failed on rank {failed[0]}, so there is no mean over all ranks: {words[failed[0]]}"
        )
    differs = next(name for name in _RULES if len({getattr(row, name) for row in rows}) > 1)
    said = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(words))
    raise StructureError(
        f"all ranks must {_RULES[differs]} at the same time, but do not ({said}). Make the same calls in the same "
        "order on every rank, also those that read a report; start from the same theta and z0, with the same seed and "
        "number of threads. A rank that solves problems of its own must do so inside its objective."
    )


def _to_bits(number: float) -> int:
    # A row holds integers, and the number must arrive exactly.
    return int(struct.unpack("q", struct.pack("d", number))[0])


def _from_bits(bits: int) -> float:
    return float(struct.unpack("d", struct.pack("q", bits))[0])
