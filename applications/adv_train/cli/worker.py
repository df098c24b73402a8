"""The process that trains and evaluates cells: it imports PyTorch once and forks for each cell on the CPU."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

from adv_train.comparison import Cell

#: Begins the line on stderr that gives the exit status of a cell. No other line begins with this character.
MARK: Final = "\0"
_USED: Final = ("torch._dynamo", "pyautoattack", "adv_train.cli.fit", "adv_train.cli.evaluation")
_PR_SET_PDEATHSIG: Final = 1


def serve() -> None:
    """Run the cells whose pickles arrive on stdin, one at a time, and write the exit status of each to stderr.

    Only Linux forks, and only for the CPU: a fork of CUDA's state is unusable. Elsewhere this process runs one cell
    itself, and its own exit status is that of the cell.
    """
    interrupted = signal.getsignal(signal.SIGINT)
    for cell in _arriving():
        if sys.platform != "linux" or cell.config.compute.device != "cpu":
            signal.signal(signal.SIGINT, interrupted)
            sys.exit(run(cell))
        for name in _USED:  # Imports start no thread that a fork would miss.
            import_module(name)
        forked = multiprocessing.get_context("fork").Process(target=_fork, args=(cell, interrupted, os.getpid()))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the fork, whose status is then reported.
        forked.start()
        forked.join()
        # The progress bar of a killed process ends without a new line.
        print(f"\n{MARK}{forked.exitcode}", file=sys.stderr, flush=True)


def run(cell: Cell) -> int:
    """Run the remaining commands of a cell; return the exit status of the first that fails, otherwise 0."""
    from adv_train.cli.entry import main

    for words in cell.commands():
        if status := main(words):
            return status
    return 0


def _arriving() -> Iterator[Cell]:
    while True:
        try:
            cell = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        yield cell


def _fork(cell: Cell, interrupted: Any, parent: int) -> None:
    """Run a cell in this process, which the system terminates when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # It may have ended before.
        signal.signal(signal.SIGINT, interrupted)
        sys.exit(run(cell))
