"""The process that runs commands for others: it imports PyTorch once and forks for each command on the CPU."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final, NamedTuple

#: Begins the line on stderr that gives the exit status of a request. No other line begins with this character.
MARK: Final = "\0"
_USED: Final = ("torch._dynamo", "pyautoattack", "adv_train.cli.fit", "adv_train.cli.evaluation")
_PR_SET_PDEATHSIG: Final = 1


class Request(NamedTuple):
    """Commands to be run one after another until one fails.

    Attributes:
        commands: The words after ``adv-train`` of each.
        fork: Run them in a fork; otherwise in the process itself, which then ends with their exit status.
    """

    commands: list[list[str]]
    fork: bool


def serve() -> None:
    """Serve the requests whose pickles arrive on stdin, one at a time, and write the exit status of each to stderr."""
    interrupted = signal.getsignal(signal.SIGINT)
    for request in _arriving():
        if not request.fork:
            signal.signal(signal.SIGINT, interrupted)
            sys.exit(run(request.commands))
        for name in _USED:  # Imports start no thread that a fork would miss.
            import_module(name)
        arguments = (request.commands, interrupted, os.getpid())
        forked = multiprocessing.get_context("fork").Process(target=_fork, args=arguments)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the fork, whose status is then reported.
        forked.start()
        forked.join()
        # The progress bar of a killed process ends without a new line.
        print(f"\n{MARK}{forked.exitcode}", file=sys.stderr, flush=True)


def run(commands: list[list[str]]) -> int:
    """Run commands; return the exit status of the first that fails, otherwise 0."""
    from adv_train.cli.entry import main

    return next((status for words in commands if (status := main(words))), 0)


def _arriving() -> Iterator[Request]:
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        yield request


def _fork(commands: list[list[str]], interrupted: Any, parent: int) -> None:
    """Run commands in this process, which the system terminates when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # It may have ended before.
        signal.signal(signal.SIGINT, interrupted)
        sys.exit(run(commands))
