"""Autograd functions with reverse mode only, which raise an error that says so in forward mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from blo._torch import functorch
from blo.errors import StructureError


class ReverseOnly(Function):
    """A function without forward mode."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise StructureError(
            "this gradient strategy has no forward mode, which torch.func.jvp, jacfwd and hessian use. Use jacrev, for "
            "a Hessian jacrev(jacrev(f)), or the strategy Unrolled()."
        )

    @staticmethod
    def require_one(cotangent: Tensor) -> None:
        """Reject a batch of cotangents from torch's older `vmap`, under which a solve cannot read its residual.

        Raises:
            StructureError: for a cotangent from `torch.autograd.grad(..., is_grads_batched=True)`.
        """
        if functorch.is_legacy_batchedtensor(cotangent):
            raise StructureError(
                "this gradient strategy cannot be differentiated with is_grads_batched=True, nor by "
                "torch.autograd.functional.jacobian(vectorize=True), which uses it. Use torch.func.jacrev, or "
                "torch.func.vmap over torch.func.vjp."
            )
