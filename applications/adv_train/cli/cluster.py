"""Train and evaluate several runs on the GPUs and machines of a Ray cluster, each in its own process."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from importlib import import_module
from typing import Any, Final

from adv_train.cli.tally import RETRIES, Tally
from adv_train.comparison import Cell
from adv_train.errors import UserError

#: The first turns off Ray's usage statistics. The second keeps Ray from hiding the GPUs from tasks for the CPU.
_ENVIRONMENT: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def run_on_ray(
    cells: Sequence[Cell], *, progress: bool | None, workers: int | None = None, address: str | None = None
) -> Generator[tuple[Cell, str | None], None, None]:
    """Train and evaluate the cells that are not done on a Ray cluster; closing the generator stops the rest.

    Each cell gets one processor core, and one GPU unless it trains on the CPU. All machines must share the working
    directory of the command, the folders of runs and data, and the installed packages.

    Args:
        cells: The cells, in the order in which they start.
        progress: As for `Tally`.
        workers: Number of cells at a time; by default as many as fit into the cluster.
        address: Address of the cluster; by default the environment variable RAY_ADDRESS, and if that is not set, a new
            cluster on this machine.

    Yields:
        Each cell that was not done, when it ends, with the reason if it failed and None otherwise.

    Raises:
        UserError: If Ray is not installed, no cluster answers, or the device of a cell names a particular GPU.
    """
    waiting = deque((cell, 0) for cell in cells if not cell.is_done())
    for cell, _ in waiting:
        _check(cell)
    ray, tally = _ray(), Tally(len(waiting), progress)
    running: dict[Any, tuple[Cell, int]] = {}
    with contextlib.closing(tally), _connected(ray, address):
        if any(_gpus(cell) for cell, _ in waiting) and not ray.cluster_resources().get("GPU"):
            tally.say("The Ray cluster has no GPU yet: cells that need a GPU wait for one (--device cpu needs none).")
        try:
            while waiting or running:
                while waiting and (workers is None or len(running) < workers):
                    cell, times = waiting.popleft()
                    # `max_calls=1` gives each cell a new process: no state of an earlier cell, and all memory is freed.
                    # `max_retries=0`, because the loop below counts the restarts.
                    task = ray.remote(num_cpus=1, num_gpus=_gpus(cell), max_calls=1, max_retries=0)(work)
                    running[task.remote(cell, os.getcwd())] = cell, times
                (ended,), _ = ray.wait(list(running), num_returns=1)
                cell, times = running.pop(ended)
                failure, died = _outcome(ray, ended)
                if failure is not None and died and times < RETRIES:
                    tally.restart(cell, failure)
                    waiting.appendleft((cell, times + 1))
                    continue
                tally.add(cell, failure)
                yield cell, failure
        finally:
            for task in running:
                ray.cancel(task, force=True)


def work(cell: Cell, folder: str) -> str | None:
    """Run the remaining commands of a cell in this process; return the reason if it failed, otherwise None.

    Args:
        cell: The cell to train and evaluate.
        folder: Working directory of the command that the user gave.
    """
    from adv_train.cli.entry import main

    try:
        os.chdir(folder)
    except OSError as error:
        return f"{error.strerror} on {socket.gethostname()}: `{folder}`; the machines of the cluster must share it"
    try:
        with cell.run.claim(cell.config):
            pass  # writes the configuration into the run folder, where `adv-train fit` reads it
        for words in cell.commands():
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = main([word for word in words if word != "--progress"])  # the bars would not be seen
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
            f"Ray chooses the GPU of each cell, but --device is {device}: give --device cuda, without a number."
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
    """Connect to the cluster at an address, or start one on this machine; a cluster that was running keeps running."""
    if ray.is_initialized():
        yield
        return
    for last in (False, True):
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            break
        except Exception as error:  # Ray raises many classes here, also plain `Exception`
            # Ray waits 30 s for its first process, which is too short on a busy machine, so try twice.
            if not last and address is None:
                ray.shutdown()
                continue
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"No Ray cluster answers at {address or 'this machine'}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _outcome(ray: Any, ended: Any) -> tuple[str | None, bool]:
    """Return the reason if a task failed, and whether the reason is that its process or machine died."""
    try:
        return ray.get(ended), False
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}", False
    except ray.exceptions.RayError as error:
        return f"its worker died ({str(error).strip().partition(chr(10))[0]})", True
