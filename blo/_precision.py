"""The parts that do not work in half precision."""

from __future__ import annotations

import torch

from blo.errors import StructureError


def require_single(dtype: torch.dtype, name: str, instead: str = "") -> None:
    """Raise for half precision, in which torch cannot factorise matrices.

    Args:
        dtype: the dtype of z.
        name: the solver or the set, for the message.
        instead: a part without a factorisation, if there is one.

    Raises:
        StructureError: for half precision.
    """
    if dtype not in (torch.float32, torch.float64):
        other = f", or use {instead}()" if instead else ""
        raise StructureError(
            f"`{name}` factorises in float32 or float64, but got {dtype}. Keep z in float32 and cast it inside the "
            f"objective{other}."
        )
