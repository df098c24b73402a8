"""Several runs on the GPUs and machines of a Ray cluster, each trained and judged in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from importlib import import_module
from typing import Any, Final

from adv_train.cli.tally import Tally
from adv_train.comparison import Cell
from adv_train.errors import UserError

RETRIES: Final = 2
"""How often a cell is begun again whose worker has died; it goes on from its `last.pt`."""

#: No figures of the cluster are sent to Ray's makers, and cells for the CPU keep the GPUs of their environment.
_ENVIRONMENT: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def run_on_ray(
    cells: Sequence[Cell], *, progress: bool | None, workers: int | None = None, address: str | None = None
) -> Generator[tuple[Cell, str | None], None, None]:
    """Train and judge the cells that are not done on a Ray cluster; closing the generator stops those that run.

    Each cell gets a processor, and a GPU where it does not train on the CPU. All machines share the folder in which the
    command runs, the folders of runs and data, and the installed packages.

    Args:
        cells: In the order in which they are started.
        progress: As for `Tally`.
        workers: Cells at a time; by default as many as the cluster has room for.
        address: Of the cluster; by default that of the variable RAY_ADDRESS, and without it this machine alone.

    Yields:
        Each cell that was not done, as it ends, and why it failed if it did.

    Raises:
        UserError: When Ray is not installed, no cluster answers, or a cell names one GPU among several.
    """
    waiting = deque((cell, 0) for cell in cells if not cell.is_done())
    for cell, _ in waiting:
        _check(cell)
    ray, tally = _ray(), Tally(len(waiting), progress)
    running: dict[Any, tuple[Cell, int]] = {}
    with contextlib.closing(tally), _connected(ray, address):
        if any(_gpus(cell) for cell, _ in waiting) and not ray.cluster_resources().get("GPU"):
            tally.say("The Ray cluster has no GPU yet: cells that train on one wait for it (--device cpu needs none).")
        try:
            while waiting or running:
                while waiting and (workers is None or len(running) < workers):
                    cell, times = waiting.popleft()
                    # Its own process, so that a cell finds nothing of an earlier one and leaves no memory taken.
                    task = ray.remote(num_cpus=1, num_gpus=_gpus(cell), max_calls=1, max_retries=0)(work)
                    running[task.remote(cell, os.getcwd())] = cell, times
                (ended,), _ = ray.wait(list(running), num_returns=1)
                cell, times = running.pop(ended)
                failure, died = _outcome(ray, ended)
                if died and times < RETRIES:
                    tally.say(f"{cell.name}: {failure}; it goes on from its last epoch.")
                    waiting.appendleft((cell, times + 1))
                    continue
                tally.add(cell, failure)
                yield cell, failure
        finally:
            for task in running:
                ray.cancel(task, force=True)


def work(cell: Cell, folder: str) -> str | None:
    """Do what is left to do for a cell in this process, and return why it failed, if it did.

    Args:
        cell: To train and judge.
        folder: In which the command was given.
    """
    from adv_train.cli.entry import main

    try:
        os.chdir(folder)
    except OSError as error:
        return f"{error.strerror} on {socket.gethostname()}: `{folder}`; the machines of the cluster must share it"
    try:
        with cell.run.claim(cell.config):
            pass  # puts the configuration where `adv-train fit` finds it
        for words in cell.commands():
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = main([word for word in words if word != "--progress"])  # nobody sees the bars
            if status:
                *_, last = ["no reason given", *said.getvalue().split("\n")[:-1]]
                return last.removeprefix("adv-train: error: ")
    except UserError as error:
        return str(error)
    return None


def _gpus(cell: Cell) -> int:
    return 0 if cell.config.compute.device == "cpu" else 1


def _check(cell: Cell) -> None:
    device = cell.config.compute.device
    if ":" in device:
        raise UserError(
            f"Ray chooses the GPU of each cell, so --device names none, but is {device}: give --device cuda."
        )


def _ray() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError("--backend ray needs the package ray: pip install 'torch-blo[adv-train,ray]'.") from None


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Join the cluster of an address, or start one on this machine; a cluster that was joined stays."""
    if ray.is_initialized():
        yield
        return
    for last in (False, True):
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            break
        except Exception as error:  # of many classes, and bare ones too
            if not last and address is None:  # Ray gives its first process 30 s, which a busy machine may exceed
                ray.shutdown()
                continue
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"No Ray cluster answers at {address or 'this machine'}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _outcome(ray: Any, ended: Any) -> tuple[str | None, bool]:
    """Return why a task failed, if it did, and whether that was because its process or machine has died."""
    try:
        return ray.get(ended), False
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}", False
    except ray.exceptions.RayError as error:
        return f"its worker died ({str(error).strip().partition(chr(10))[0]})", True
