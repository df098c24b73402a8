"""Train and evaluate several runs at a time in other processes, by the ordinary commands."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from adv_train.cli.tally import RETRIES, Tally
from adv_train.cli.waiting import Task, Waiting
from adv_train.cli.worker import MARK, Request
from adv_train.comparison import Cell
from adv_train.errors import UserError

#: What a process runs. It serves many requests, because importing PyTorch takes longer than a small training.
WORK = "from adv_train.cli.worker import serve; serve()"
_END_OF_LINE = re.compile(r"[\r\n]")
_CURSOR_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def run_cells(
    cells: Sequence[Cell], *, progress: bool | None, workers: int | None = None
) -> Generator[tuple[Cell, str | None], None, None]:
    """Train and evaluate the cells that are not done, several at a time; closing the generator stops the rest.

    A command whose process is killed by a signal, as when memory runs out, is restarted at most `RETRIES` times.

    Args:
        cells: The cells, in the order in which they start.
        progress: As for `Tally`; below its bar, each process has a line.
        workers: Number of processes at a time. By default one for each processor core, which is fastest for small
            networks, and a single one if a cell trains on an accelerator. The cores are divided among the processes.

    Yields:
        Each cell that was not done, when it ends, with the reason if it failed and None otherwise.
    """
    tasks = [Task(cell) for cell in cells if not cell.is_done()]
    at_once = workers or (_processors() if all(task.cell.config.compute.device == "cpu" for task in tasks) else 1)
    tally = Tally(len(tasks), progress)
    lines = _lines(min(at_once, len(tasks)), tally.shown)
    waiting, processes = Waiting(tasks), _Processes(max(1, _processors() // at_once), tally.restart)
    ended: queue.SimpleQueue[tuple[Cell, str | None] | BaseException] = queue.SimpleQueue()

    def work(line: tqdm[Any], evaluates: bool) -> None:
        try:
            while task := waiting.take(trained=evaluates):
                try:
                    failure = processes.run(task.cell, task.words, _writer(task.cell.name, line))
                    goes_on = failure is None and task.advance()
                except (UserError, OSError) as error:
                    failure, goes_on = str(error), False
                if goes_on:
                    waiting.put_back(task)
                else:
                    waiting.end()
                    ended.put((task.cell, failure))
        except BaseException as error:
            ended.put(error)

    pool = ThreadPoolExecutor(at_once)
    try:
        for place, line in enumerate(lines):
            pool.submit(work, line, place % 2 == 0)
        for _ in tasks:
            found = ended.get()
            if isinstance(found, BaseException):
                raise found
            tally.add(*found)
            yield found
    finally:
        waiting.close()
        processes.stop()
        pool.shutdown(wait=True)
        processes.close()
        for line in lines:
            line.close()
        tally.close()


class _Processes:
    """The running processes.

    Args:
        threads: Number of threads that each may use.
        restarted: Called with a cell and the reason when the cell starts again.
    """

    def __init__(self, threads: int, restarted: Callable[[Cell, str], None]) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._restarted = restarted
        self._running: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._stopping = threading.Event()

    def run(self, cell: Cell, words: list[str], tell: Callable[[str], None]) -> str | None:
        """Run the next command of a cell in a fork, or all its commands in a process of their own where none may fork.

        Args:
            cell: The cell.
            words: The words after ``adv-train`` of the next command.
            tell: Called with each line that the command writes to stderr.

        Returns:
            The reason if a command failed, otherwise None.

        Raises:
            UserError: If another process trains in the run folder.
            OSError: If the system refuses a file or a process.
        """
        for _ in range(RETRIES):
            failure, killed = self._once(cell, words, tell)
            if failure is None or not killed or self._stopping.is_set():
                return failure
            self._restarted(cell, failure)
        return self._once(cell, words, tell)[0]

    def _once(self, cell: Cell, words: list[str], tell: Callable[[str], None]) -> tuple[str | None, bool]:
        """Run them once; return the reason if a command failed, and whether a signal killed its process."""
        tell("starting")
        with cell.run.claim(cell.config):
            pass  # writes the configuration into the run folder, where `adv-train fit` reads it
        process = self._free()
        # Only Linux forks, and only for the CPU: a fork of CUDA's state is unusable.
        fork = sys.platform == "linux" and cell.config.compute.device == "cpu"
        request = Request([words] if fork else list(cell.commands()), fork)
        unread = _hand_over(pickle.dumps(request), process)
        last, status = _follow(process, tell)
        tell("")
        if status is None:
            status = _ended(process)
        else:
            self._idle.put(process)
        if status < 0:
            return f"its process was killed by signal {-status}", status != -signal.SIGINT
        if status:
            return last.removeprefix("adv-train: error: ") or "no reason given", False
        return ("its process ended without reading what to do" if unread else None), False

    def _free(self) -> subprocess.Popen[bytes]:
        """Return a process without a request; start one if there is none."""
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        process = subprocess.Popen(
            [sys.executable, "-c", WORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        self._running.append(process)
        # A thread may have taken a cell before `stop`. If `stop` has gone through the list before this process entered
        # it, the process must be terminated here.
        if self._stopping.is_set():
            process.terminate()
        return process

    def stop(self) -> None:
        """Terminate the running processes, and each process that starts after this call."""
        self._stopping.set()
        for process in self._running:
            process.terminate()  # does nothing if the process has ended

    def close(self) -> None:
        """Wait for the end of the processes without a request; no other thread may use this object."""
        while not self._idle.empty():
            _ended(self._idle.get())


def _hand_over(request: bytes, process: subprocess.Popen[bytes]) -> bool:
    """Write a pickled request to the stdin of a process; return whether the process had ended before."""
    assert process.stdin is not None
    try:
        process.stdin.write(request)  # fits into the buffer of the pipe, so this does not block
        process.stdin.flush()
    except BrokenPipeError:
        return True
    return False


def _follow(process: subprocess.Popen[bytes], tell: Callable[[str], None]) -> tuple[str, int | None]:
    """Pass each line that a process writes to stderr on to `tell`, until its request or the process itself has ended.

    A progress bar ends its states with a carriage return, so each state counts as a line.

    Returns:
        The last line, and the exit status of the request; None instead of a status if the process has ended.
    """
    said, rest = "", ""
    assert process.stderr is not None
    while chunk := os.read(process.stderr.fileno(), 4096):
        *ended, rest = _END_OF_LINE.split(rest + chunk.decode(errors="replace"))
        for text in ended:
            if text.startswith(MARK):
                return said, int(text.removeprefix(MARK))
            if plain := _CURSOR_MOVES.sub("", text).strip():
                said = plain
                tell(plain)
    return said, None


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Close the pipes of a process, so that it ends, and return its exit status when it has."""
    assert process.stdin is not None and process.stderr is not None
    with contextlib.suppress(BrokenPipeError):  # what it has not read is lost
        process.stdin.close()
    status = process.wait()
    process.stderr.close()
    return status


def _lines(count: int, shown: bool) -> list[tqdm[Any]]:
    """Make a line on the terminal for each process, below the bar that counts the cells."""
    # Only the description is shown: it holds the text of the progress bar of the process itself.
    rows = range(1, count + 1)
    return [tqdm(bar_format="{desc}", position=row, leave=False, file=sys.stderr, disable=not shown) for row in rows]


def _writer(name: str, line: tqdm[Any]) -> Callable[[str], None]:
    def tell(text: str) -> None:
        # Cut the text to the width of the terminal: a wrapped line would displace the lines below it.
        line.set_description_str(f"{name:<16} {text}"[: shutil.get_terminal_size().columns - 1] if text else "")

    return tell


def _processors() -> int:
    # The affinity, because a container or batch system may grant fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
