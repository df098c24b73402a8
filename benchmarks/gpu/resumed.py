"""A training run that is killed and resumed, compared with an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from adv_train import checkpoint, train
from adv_train.config import resolve
from adv_train.observers import Observer
from benchmarks.gpu.stages import Row
from benchmarks.measure import largest_relative_error

_EPOCHS, _KILLED_IN_STEP = 3, 6  # an epoch has 4 steps
_CHILD = "import sys; from benchmarks.gpu import resumed; resumed.train_and_die(*sys.argv[1:])"


def killed_and_resumed(method: str, device: torch.device, precision: str) -> Row:
    """Train on the digits: twice undisturbed, and once killed in the second epoch and resumed.

    It compares all tensors of the last checkpoints (weights, batch norm's statistics, momenta, the method's memory) and
    the records of the epochs, with deterministic algorithms where torch has them. Two undisturbed runs measure how
    reproducible the device is: if they agree bit for bit, so must the resumed run; otherwise it may differ four times
    as much.
    """
    with tempfile.TemporaryDirectory() as folder, deterministic():
        found = [Path(folder, name) for name in ("alone", "again", "killed")]
        child = subprocess.Popen([sys.executable, "-c", _CHILD, method, device.type, precision, str(found[2])])
        for run in found[:2]:
            _train(method, device.type, precision, run)
        if (status := child.wait()) != -signal.SIGKILL:
            raise RuntimeError(f"the run to be killed ended with status {status}")
        resumed_after = _train(method, device.type, precision, found[2])
        alone, again, killed = (checkpoint.load(run / "last.pt") for run in found)
        error, twin = (largest_relative_error(_tensors(run), _tensors(alone)) for run in (killed, again))
    same = killed.history == alone.history
    return {
        "error": error,
        "goal": 4 * twin,
        "met": resumed_after == 1 and error <= 4 * twin and (same or twin > 0),
        "resumed_after_epochs": resumed_after,
        "same_records": same,
    }


def train_and_die(method: str, device: str, precision: str, out: str) -> None:
    """Train, and kill this process in the middle of the second epoch."""
    with deterministic():
        _train(method, device, precision, Path(out), _Killer())


class _Killer(Observer):
    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == _KILLED_IN_STEP:
            self.kill()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _train(method: str, device: str, precision: str, out: Path, *observers: Observer) -> int:
    chosen = {"data": "digits", "method": method, "device": device, "precision": precision, "eps": 0.2}
    sizes = {"epochs": _EPOCHS, "batch_size": 32, "train_limit": 128, "validation_steps": 1}
    return train.fit(resolve({**chosen, **sizes}), out, progress=False, observers=observers).resumed_after


def _tensors(saved: checkpoint.Checkpoint) -> list[torch.Tensor]:
    momenta = [value for state in saved.optimizer["state"].values() for value in state.values()]
    found = [*saved.model.values(), *saved.memory.values(), *momenta]
    return [value.double() for value in found if isinstance(value, torch.Tensor)]


@contextmanager
def deterministic() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
