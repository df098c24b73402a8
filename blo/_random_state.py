"""The random state of the process as a module sees it while it is evaluated: the state of its streams."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from blo._streams import innermost
from blo._swaps import Swap, swapped
from blo._torch import default_generator


def redirected(kinds: Iterable[str]) -> contextlib.AbstractContextManager[None]:
    """Let `torch.get_rng_state`, `set_rng_state`, `fork_rng` and `manual_seed` act on the streams of an evaluation.

    A module that draws one mask twice, by restoring the state, so gets one mask. In threads that evaluate nothing these
    functions do what they always do.

    Args:
        kinds: the types of the devices, for example `"cuda"`.
    """
    swaps: list[Swap] = [(vars(torch.random), "default_generator", _CPU)]
    for kind in {"cuda", "xpu"}.intersection(kinds):
        swaps += [(vars(torch.get_device_module(kind)), name, function) for name, function in _functions(kind).items()]
    return swapped(swaps)


def _current(device: torch.device) -> torch.Generator | None:
    """Return the generator that takes the place of the device's default one in this thread."""
    streams, default = innermost(), default_generator(device)
    return default if streams is None or default is None else streams.stream(default)


class _Redirect:
    """Stands for the default generator of the CPU in the functions of `torch.random`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_current(torch.device("cpu")), name)


_CPU = _Redirect()


@functools.cache
def _functions(kind: str) -> dict[str, Callable[..., Any]]:
    """Return replacements of functions of `torch.cuda` or `torch.xpu`, which act on streams; the keys are the names."""
    module = torch.get_device_module(kind)

    def generator(device: Any) -> Any:
        return _current(torch.device(kind, device) if isinstance(device, int) else torch.device(device))

    def get_rng_state(device: Any = kind) -> Tensor:
        state: Tensor = generator(device).get_state()
        return state

    def set_rng_state(new_state: Tensor, device: Any = kind) -> None:
        generator(device).set_state(new_state)

    def manual_seed(seed: int) -> None:
        generator(kind).manual_seed(int(seed))

    def manual_seed_all(seed: int) -> None:
        for index in range(module.device_count()):
            generator(index).manual_seed(int(seed))

    return {f.__name__: f for f in (get_rng_state, set_rng_state, manual_seed, manual_seed_all)}
