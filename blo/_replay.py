"""Makes all evaluations of a module the same function: they draw the same random numbers in the same order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from blo._random_state import redirected
from blo._streams import Streams, innermost
from blo._torch import generators
from blo._transforms import random_in_vmap

_State = tuple[torch.Generator, Tensor]


class Replay:
    """Random numbers as if `torch.manual_seed(seed)` came before each evaluation; the global state does not change.

    The numbers depend only on the seed and the shapes, see `Streams`. That costs microseconds for each operation, and
    is skipped after an evaluation that drew nothing, until a training flag changes. It is not skipped for a module that
    has a generator of its own, whose draws do not show in the state of the default generators.

    Inside `torch.vmap(..., randomness="error")`, the default, every lane draws the same numbers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.seed = 0
        #: Whether the last evaluation must be repeated, because it may have drawn without being prepared for it.
        self.again = False
        self._prepared = True
        self._parts = list(module.modules())
        self._training = [part.training for part in self._parts]
        self._always = any(_holds_generator(part) for part in self._parts)
        #: The default generators before an evaluation that must be repeated.
        self._doubted: list[_State] = []
        #: The module's own generators before and after the last evaluation that drew from one.
        self._own: list[tuple[torch.Generator, Tensor, Tensor]] = []

    def reseed(self, seed: int) -> None:
        """Begin the next outer step: the module's own generators move on as in one forward pass of the module."""
        self.seed = seed
        for generator, before, after in self._own:
            if torch.equal(generator.get_state(), before):  # otherwise it was moved by its owner
                generator.set_state(after)
        self._own = []

    @contextlib.contextmanager
    def __call__(self, devices: Iterable[torch.device]) -> Iterator[None]:
        """Evaluate inside; if `again` is true afterwards, evaluate again."""
        before = [(source, source.get_state()) for source in generators(devices)]
        doubted, self._doubted, self.again = self._doubted, [], False
        training = [part.training for part in self._parts]
        if not (self._prepared or innermost() or training != self._training):
            with random_in_vmap():
                yield
            # Torch does not report draws. If the state has moved, either the module or another thread has drawn.
            if _moved(before):
                self.again = self._prepared = True
                self._doubted = before
            return
        streams, self._training = Streams(self.seed), training
        try:
            with random_in_vmap(), redirected(source.device.type for source, _ in before), streams:
                yield
        finally:
            self._finish(streams, doubted)
        # While another thread draws, evaluations stay prepared: to repeat each of them would cost more.
        self._prepared = self._always or streams.drew or _moved(before)

    def _finish(self, streams: Streams, doubted: list[_State]) -> None:
        """Put back the generators that the module has moved, in this evaluation and in the one before that it repeats.

        The draws of other threads are left as they are, except where the module has drawn without being prepared.
        """
        if streams.drew:
            _put_back(doubted)
        if streams.own:
            self._always = True
            own = streams.own.values()
            self._own = [(generator, state, generator.get_state()) for generator, state in own]
            _put_back(own)


def _put_back(states: Iterable[_State]) -> None:
    for generator, state in states:
        generator.set_state(state)


def _moved(states: Iterable[_State]) -> bool:
    return any(not torch.equal(generator.get_state(), state) for generator, state in states)


def _holds_generator(module: nn.Module) -> bool:
    """Return whether a module has a generator as an attribute, or in a list, tuple or dict that is one."""
    for value in vars(module).values():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(one, torch.Generator) for one in inner):
            return True
    return False
