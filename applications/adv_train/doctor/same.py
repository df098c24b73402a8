"""Finds the layer at which two passes through a network differ that should agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from adv_train.attacks.judging import adapted, frozen
from adv_train.attacks.narration import undisturbed

Call: TypeAlias = tuple[str, Tensor, Tensor]

_TOLERANCE: Final = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative tolerance by dtype, 1e-3 for others: rounding depends on the shape of the batch."""


@contextmanager
def untouched(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Allow calls of the model in its present mode; restore its buffers and the random state afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with undisturbed(x.device), torch.no_grad():
        torch.manual_seed(0)
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Return for each row whether two tensors of the same shape differ by more than rounding, ``(batch,)``."""
    first, second = one.flatten(1), other.flatten(1)
    scale = first.float().abs().max().clamp(min=1e-30) * _TOLERANCE.get(one.dtype, 1e-3)
    close = (first.float() - second.float()).abs() <= scale
    # Two values that are both not finite count as equal.
    return ~(close | (~first.isfinite() & ~second.isfinite())).all(1)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits in the model's present mode."""
    found: Tensor = adapted(model, x)(x)
    return found


def is_randomised(model: nn.Module, x: Tensor) -> bool:
    """Return whether two passes in eval mode return different logits; the model stays as it was."""
    with untouched(model, x), frozen(model):
        return bool(differ(logits(model, x), logits(model, x)).any())


def first_parting(model: nn.Module, one: Tensor, other: Tensor, rows: int) -> str | None:
    """Find the first layer that gets equal inputs in the first rows of two batches, but returns different outputs.

    Returns:
        Its name and class, or None if the difference arises outside a layer.
    """
    for call, again in zip_longest(_calls(model, one, rows), _calls(model, other, rows)):
        if call is None or again is None or call[0] != again[0] or call[1].shape != again[1].shape:
            return None
        name, given, answered = call
        if bool(differ(answered, again[2]).any()) and not bool(differ(given, again[1]).any()):
            return f"`{name}` ({type(model.get_submodule(name)).__name__})" if name else None
    return None


def _calls(model: nn.Module, x: Tensor, rows: int) -> list[Call]:
    """Return the name, the input and the output of each layer, in the order of the calls."""
    calls: list[Call] = []

    def hook(name: str) -> Any:
        def record(_: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            if given and isinstance(given[0], Tensor) and isinstance(answer, Tensor) and answer.ndim > 0:
                calls.append((name, given[0][:rows].clone(), answer[:rows].clone()))

        return record

    layers = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    try:
        logits(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return calls
