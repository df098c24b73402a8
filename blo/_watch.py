"""Finds operations that an evaluation of a module must not use, and that torch does not report."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from blo import tree
from blo._stale import Stale, memory
from blo._torch import DispatchMode, embedding_operators, weight_norm_operator, writes, written_arguments
from blo.errors import BloWarning, StructureError

_aten = torch.ops.aten
_REENTRANT = (
    "`functionalize` cannot be used with re-entrant checkpointing, which ignores parameters in a dict, so their "
    "gradients would be zero. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False) around the call of the "
    "functional."
)


class Inspection(DispatchMode):
    """Inspects the operations of an evaluation that gets copies of all its tensors.

    It costs some microseconds for each operation, so it is used only for the first evaluation.

    Args:
        parameters: copies by name. No operation may write to them.
        inputs: copies to which operations may write; `writes` is then True.
        stale: records every operation.
    """

    def __init__(self, parameters: dict[str, Tensor], inputs: Iterable[Tensor], stale: Stale) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = {key: name for name, tensor in parameters.items() if (key := memory(tensor)) is not None}
        self._inputs = {memory(tensor) for tensor in inputs} - {None}
        self.writes, self._stale = False, stale

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = _written(function, args, kwargs) if writes(function) else set()
        for key in written:
            if key in self._parameters:
                raise StructureError(write_message(self._parameters[key], str(function)))
            self.writes |= key in self._inputs
        if _miscounts(function, args, kwargs):
            raise StructureError(
                "`module` must have gradients that are those of its values, but calls an embedding with "
                "scale_grad_by_freq=True, which divides them by counts. Leave that out, or use nn.Embedding itself, "
                "for which `functionalize` leaves it out."
            )
        if function is _aten.embedding.default and (args[2] if len(args) > 2 else kwargs.get("padding_idx", -1)) >= 0:
            warnings.warn(
                "`module` calls an embedding with padding_idx, whose gradient leaves out the padding row though the "
                "value depends on it: the derivative is right while nothing moves that row. Use nn.Embedding itself, "
                "for which `functionalize` treats the row as a constant.",
                BloWarning,
                stacklevel=2,
            )
        if function is weight_norm_operator:
            raise StructureError(
                "`module` must have the right second derivatives, but those of torch's fused weight norm are wrong. "
                "Use torch.nn.utils.parametrizations.weight_norm, for which `functionalize` uses a formula."
            )
        result = function(*args, **kwargs)
        self._stale.see(tree.tensors((args, kwargs)), tree.tensors(result), written)
        return result


def write_message(name: str, how: str) -> str:
    """Return the message about a parameter that was written to."""
    return (
        f"`module` must not write to its parameters, but its forward pass writes to {name!r} ({how}): the "
        "caller's tensors would change, and the derivative would be wrong. Compute the changed weight by operations "
        "that autograd records, as torch.nn.utils.parametrize does, or write to it between evaluations."
    )


def refuse_reentrant() -> None:
    """Raise if the call comes from a re-entrant checkpoint.

    Raises:
        StructureError: with the advice to use the other kind.
    """
    frame, code = sys._getframe(1), CheckpointFunction.forward.__code__
    while frame is not None:
        if frame.f_code is code:
            raise StructureError(_REENTRANT)
        frame = frame.f_back  # type: ignore[assignment]


def _written(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int | None]:
    """Return the memory that an operation writes to."""
    found: list[Any] = []
    for index, name in written_arguments(function):
        value = args[index] if index < len(args) else kwargs.get(name)
        found += value if isinstance(value, list | tuple) else [value]
    return {memory(value) for value in found if isinstance(value, Tensor)}


def _miscounts(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation is an embedding whose gradients are divided by counts."""
    if function not in embedding_operators:
        return False
    return bool(args[3] if len(args) > 3 else kwargs.get("scale_grad_by_freq", False))
