"""What the environment says of processes that were started together, for those who cannot wait for PyTorch."""

from __future__ import annotations

import os

from adv_train.errors import UserError

_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many were started; 0 and 1 where the environment is silent.

    Raises:
        UserError: When it tells a part only, or nonsense.
    """
    if "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    missing = [name for name in _SAID if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"The environment tells of several processes, but not {' and '.join(missing)}: start them by torchrun, or "
            "unset RANK and WORLD_SIZE."
        )
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UserError(
            f"RANK must be a number from 0 up to WORLD_SIZE - 1, but the environment has RANK={rank} and "
            f"WORLD_SIZE={size}."
        )
    return int(rank), int(size)
