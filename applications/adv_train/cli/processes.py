"""Several runs side by side, each trained and judged by the ordinary commands in a process of its own."""

from __future__ import annotations

import os
import pickle
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

from adv_train.cli.tally import Tally
from adv_train.comparison import Cell
from adv_train.errors import UserError

#: Runs the commands of a cell in one process: importing PyTorch takes as long as training a small network.
WORK = """
import pickle, sys
from adv_train.cli import main
for words in pickle.load(sys.stdin.buffer).commands():
    if status := main(words):
        sys.exit(status)
"""
_END_OF_LINE = re.compile(r"[\r\n]")
_CURSOR_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def run_cells(
    cells: Sequence[Cell], *, progress: bool | None, workers: int | None = None
) -> Generator[tuple[Cell, str | None], None, None]:
    """Train and judge the cells that are not done, several at a time; closing the generator stops those that run.

    Args:
        cells: In the order in which they are started.
        progress: As for `Tally`; with the bar there is a line for each process.
        workers: Processes at a time; by default one for each processor, which small networks make the most of, and
            on an accelerator one. The processors are shared out among them.

    Yields:
        Each cell that was not done, as it ends, and why it failed if it did.
    """
    waiting = [cell for cell in cells if not cell.is_done()]
    at_once = workers or (_processors() if all(cell.config.compute.device == "cpu" for cell in waiting) else 1)
    tally = Tally(len(waiting), progress)
    lines = _lines(min(at_once, len(waiting)), tally.shown)
    free: queue.SimpleQueue[tqdm[Any]] = queue.SimpleQueue()
    for line in lines:
        free.put(line)
    processes = _Processes(threads=max(1, _processors() // at_once))

    def run(cell: Cell) -> str | None:
        line = free.get()
        try:
            return processes.run(cell, _writer(cell.name, line))
        finally:
            free.put(line)

    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(run, cell): cell for cell in waiting}
        for future in as_completed(futures):
            cell, failure = futures[future], future.result()
            tally.add(cell, failure)
            yield cell, failure
    finally:
        processes.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        for line in lines:
            line.close()
        tally.close()


class _Processes:
    """The processes that run, each with so many threads."""

    def __init__(self, threads: int) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()

    def run(self, cell: Cell, tell: Callable[[str], None]) -> str | None:
        """Do what is left to do for a cell, and return why it failed, if it did."""
        tell("starting")
        try:
            with cell.run.claim(cell.config):
                pass  # puts the configuration where `adv-train fit` finds it
        except UserError as error:
            return str(error)
        process = subprocess.Popen(
            [sys.executable, "-c", WORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        self._running.append(process)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(pickle.dumps(cell))  # less than a pipe holds, so this does not wait
        if self._stopping.is_set():  # A thread takes the next cell before that can be cancelled.
            process.terminate()
        last = _follow(process, tell)
        tell("")
        if process.returncode < 0:
            return f"its process was killed by signal {-process.returncode}"
        return (last.removeprefix("adv-train: error: ") or "no reason given") if process.returncode else None

    def stop(self) -> None:
        """End those that run, and those that are about to."""
        self._stopping.set()
        for process in self._running:
            process.terminate()  # does nothing to one that has ended


def _follow(process: subprocess.Popen[bytes], tell: Callable[[str], None]) -> str:
    """Pass on each state of a process's bars; returns the last thing it said once it has ended."""
    said, rest = "", ""
    with process:
        assert process.stderr is not None
        while chunk := os.read(process.stderr.fileno(), 4096):
            *ended, rest = _END_OF_LINE.split(rest + chunk.decode(errors="replace"))
            for text in ended:
                if plain := _CURSOR_MOVES.sub("", text).strip():
                    said = plain
                    tell(plain)
    return said


def _lines(count: int, shown: bool) -> list[tqdm[Any]]:
    """Make a line for each process, below the bar that counts the cells."""
    # Only the description is used: what a line says is the bar of the process behind it.
    rows = range(1, count + 1)
    return [tqdm(bar_format="{desc}", position=row, leave=False, file=sys.stderr, disable=not shown) for row in rows]


def _writer(name: str, line: tqdm[Any]) -> Callable[[str], None]:
    def tell(text: str) -> None:
        # A line that wraps would push the others out of place.
        line.set_description_str(f"{name:<16} {text}"[: shutil.get_terminal_size().columns - 1] if text else "")

    return tell


def _processors() -> int:
    # Fewer than the machine has, where a container or batch system grants fewer.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
