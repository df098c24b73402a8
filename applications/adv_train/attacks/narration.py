"""The side effects of `pyautoattack`: its log moves our bar, its warnings become ours, global state is restored."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tqdm import tqdm


def bar_mover(bar: tqdm[Any], passes: dict[str, int], title: str) -> Callable[[str], None]:
    """Make a listener that moves the bar to where a part begins.

    The passes alone would not get there: samples that broke shorten the part before.
    """
    names = list(passes)

    def listen(message: str) -> None:
        name = message.removeprefix("running ")
        if name in passes:
            before = sum(passes[earlier] for earlier in names[: names.index(name)])
            bar.update(before - bar.n)
            bar.set_description(f"{title} {name}")
        elif message.startswith("robust accuracy after"):
            bar.set_postfix_str(message.split(": ")[1].split(" ")[0] + " robust")

    return listen


class _Narrator(logging.Handler):
    """Passes plain messages to a listener and keeps each different warning."""

    def __init__(self, listener: Callable[[str], None]) -> None:
        super().__init__()
        self.listener = listener
        self.warnings: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.warnings[message] = None
        else:
            self.listener(message)


@contextmanager
def narrated(logger: logging.Logger, listener: Callable[[str], None]) -> Iterator[None]:
    """Send the package's log to a listener instead of the terminal, and its warnings to `warnings`, each once."""
    narrator = _Narrator(listener)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(narrator)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(narrator)
        logger.setLevel(level)
        logger.propagate = propagate
    for message in narrator.warnings:
        warnings.warn(f"AutoAttack: {message}", RuntimeWarning, stacklevel=5)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restore what the package sets for the whole process: the random state, and a debugger's trace function."""
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        sys.settrace(trace)
