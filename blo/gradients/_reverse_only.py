"""Functions that are differentiated in reverse mode, and say so when forward mode is tried."""

from __future__ import annotations

from typing import Any

from torch.autograd import Function

from blo.errors import StructureError


class ReverseOnly(Function):
    """A function without forward mode."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise StructureError(
            "this gradient strategy has no forward mode, which torch.func.jvp, jacfwd and hessian use. Use jacrev, for "
            "a Hessian jacrev(jacrev(f)), or the strategy Unrolled()."
        )
