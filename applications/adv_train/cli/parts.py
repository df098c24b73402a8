"""Several runs side by side, each trained and judged by the ordinary commands in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adv_train import evaluation
from adv_train.attacks import PGD
from adv_train.config import RunConfig
from adv_train.errors import UserError
from adv_train.records import RunFolder

#: Runs several commands in one process: importing PyTorch takes as long as training a small network for some epochs.
COMMANDS_IN_TURN = """
import json, sys
from adv_train.cli import main
for words in json.loads(sys.argv[1]):
    if status := main(words):
        sys.exit(status)
"""
_END_OF_LINE = re.compile(r"[\r\n]")
_CURSOR_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Part:
    """One run to train and judge.

    Attributes:
        name: What to call it.
        out: Its run folder.
        config: What it trains.
        fit: The words after ``adv-train fit`` that give this configuration.
        images: How many test images it is judged on.
    """

    name: str
    out: Path
    config: RunConfig
    fit: tuple[str, ...]
    images: int

    def is_done(self) -> bool:
        """Whether it is trained and fully judged."""
        run = RunFolder(self.out)
        try:
            outcome = evaluation.read(self.out, threat=self.config.threat)
            epochs = len(run.metrics())
        except UserError:
            return False
        pgd, full = outcome.attacks.get("pgd"), PGD()
        fully = pgd is not None and (pgd.settings["steps"], pgd.settings["restarts"]) == (full.steps, full.restarts)
        return (
            fully
            and outcome.threat.matches(self.config.threat)
            and outcome.ra_aa is not None
            and outcome.n == self.images
            and epochs == self.config.training.epochs
        )


def run_parts(parts: Sequence[Part], *, progress: bool | None) -> None:
    """Train and judge the parts that are not done, as many at a time as there are processors.

    Small networks gain nothing from a second thread, so each process has one.

    Args:
        parts: The cheapest first; they are started from the other end, so that the last to finish is a short one.
        progress: Show a line for each part on stderr; ``None`` does so on a terminal, and elsewhere writes a line
            when a part is done.

    Raises:
        UserError: When a process fails; the others are stopped, and go on from where they were another time.
    """
    waiting = [part for part in reversed(parts) if not part.is_done()]
    shown = sys.stderr.isatty() if progress is None else progress
    lines = {part.name: _line(row, shown) for row, part in enumerate(waiting)}
    processes: list[subprocess.Popen[bytes]] = []
    stopping = threading.Event()
    pool = ThreadPoolExecutor(_processors())
    try:
        futures = {
            pool.submit(_run_part, part, processes, stopping, _writer(part.name, lines[part.name])): part
            for part in waiting
        }
        for future in as_completed(futures):
            future.result()
            if progress is None and not shown:
                print(f"{futures[future].name}: trained and judged", file=sys.stderr, flush=True)
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()  # does nothing to one that has ended
        pool.shutdown(wait=True)
        for line in lines.values():
            line.close()


def _run_part(
    part: Part, processes: list[subprocess.Popen[bytes]], stopping: threading.Event, tell: Callable[[str], None]
) -> None:
    tell("starting")
    fit = ["fit", *part.fit, "--out", str(part.out), "--progress"]
    judge = ["eval", str(part.out), "--limit", str(part.images), "--progress"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS_IN_TURN, json.dumps([fit, judge])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    processes.append(process)
    if stopping.is_set():  # The thread of a part that failed takes the next one before that can be cancelled.
        process.terminate()
    last = _follow(process, tell)
    if process.returncode != 0:
        raise UserError(f"{part.name}: {last.removeprefix('adv-train: error: ') or 'its process was killed'}")
    tell("done")


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


def _line(row: int, shown: bool) -> tqdm[Any]:
    # Only the description is used: what a line says is the bar of the process behind it.
    return tqdm(bar_format="{desc}", position=row, leave=False, file=sys.stderr, disable=not shown)


def _writer(name: str, line: tqdm[Any]) -> Callable[[str], None]:
    def tell(text: str) -> None:
        # A line that wraps would push the others out of place.
        line.set_description_str(f"{name:<16} {text}"[: shutil.get_terminal_size().columns - 1])

    return tell


def _processors() -> int:
    # Fewer than the machine has, where a container or batch system grants fewer.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
