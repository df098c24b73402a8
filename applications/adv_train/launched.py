"""Read the rank and the number of processes from the environment, without importing PyTorch."""

from __future__ import annotations

import os

from adv_train.errors import UserError

_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; 0 and 1 if the environment defines neither.

    Raises:
        UserError: If some of the variables are missing, or the rank and the number contradict each other.
    """
    if "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    missing = [name for name in _SAID if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"The environment is set for several processes but lacks {' and '.join(missing)}: start with torchrun, or "
            "unset RANK and WORLD_SIZE."
        )
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UserError(
            f"RANK must be a number from 0 up to WORLD_SIZE - 1, but the environment has RANK={rank} and "
            f"WORLD_SIZE={size}."
        )
    return int(rank), int(size)
