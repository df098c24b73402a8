"""Makes all evaluations of a module the same function: they draw the same random numbers in the same order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from blo._torch import DispatchMode, generators, writes
from blo._transforms import random_in_vmap

_aten = torch.ops.aten


class Replay:
    """Random numbers as if `torch.manual_seed(seed)` came before each evaluation; the global state does not change.

    The numbers depend only on the seed and the shapes. Torch fills a tensor in the order of its memory, and its fused
    dropout on accelerators draws another stream under `vmap`. So draws fill contiguous tensors, and dropout is computed
    from a mask. That costs microseconds for each operation, and is skipped after an evaluation that drew nothing.

    Inside `torch.vmap(..., randomness="error")`, the default, every lane draws the same numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        #: Whether the last evaluation drew random numbers, and so whether the next one is to be prepared for it.
        self.draws = True

    @contextlib.contextmanager
    def __call__(self, devices: Iterable[torch.device]) -> Iterator[None]:
        """Evaluate inside; if afterwards `draws` has turned true, evaluate again."""
        sources = list(generators(devices))
        states = [generator.get_state() for generator in sources]
        try:
            for generator in sources:
                generator.manual_seed(self.seed)
            # Torch does not report draws: a generator that has left its seeded state shows them.
            start = [generator.get_state() for generator in sources]
            with random_in_vmap(), _contiguous_draws(self.draws):
                yield
            self.draws = any(not torch.equal(g.get_state(), s) for g, s in zip(sources, start, strict=True))
        finally:
            for generator, state in zip(sources, states, strict=True):
                generator.set_state(state)


def _contiguous_draws(wanted: bool) -> contextlib.AbstractContextManager[object]:
    return _Contiguous() if wanted else contextlib.nullcontext()  # type: ignore[no-untyped-call]


class _Contiguous(DispatchMode):
    """Makes random operations fill tensors in the order of their indices."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        if function is _aten.native_dropout.default:
            return _dropout(*args, **kwargs)
        straight = [_contiguous(argument) for argument in args]
        result = function(*straight, **kwargs)
        if writes(function) and args and straight[0] is not args[0]:
            return args[0].copy_(straight[0])  # the operation filled the copy
        return result


def _dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """Return dropout by the operations into which `vmap` decomposes `native_dropout`, to get the same everywhere."""
    if train is False:
        return _aten.native_dropout.default(x, p, train)  # type: ignore[no-any-return]
    mask = torch.empty(x.shape, dtype=x.dtype, device=x.device).bernoulli_(1 - p)
    # For p = 1 the scale 1 / (1 - p) is infinite, and its product with a mask of zeros NaN.
    return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask.bool()


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument
