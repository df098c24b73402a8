"""Training results: cells of the published tables, trained and evaluated, several at a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adv_train.records import RunFolder
from benchmarks.gpu.cell import PLAN, figures
from benchmarks.gpu.stages import Clock, Row, Stage
from benchmarks.registry import stderr

#: Title, method, options. Methods that cost as much as Fast-BAT without IG come before those that cost more.
METHODS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("fast-at", "fast-at", {}),
    ("pgd-at, 2 steps", "pgd-at", {}),
    ("fast-bat", "fast-bat", {}),
    ("fast-bat, no IG", "fast-bat", {"ig-weight": "0"}),
    ("fast-bat, shifted, 1 step", "fast-bat", {"implicit": "shifted", "steps": "1"}),
    ("pgd-at, 3 steps", "pgd-at", {"steps": "3"}),
    ("fgsm-pgi", "fgsm-pgi", {}),
    ("liet", "liet", {}),
    ("nuat", "nuat", {}),
    ("fast-bat, reversed IG", "fast-bat", {"ig-weight": "-1"}),
    ("fast-at-ga", "fast-at-ga", {}),
)
#: The cells, of the first seed at 8/255, that have the GPU to themselves, so that their times are those of one run.
_ALONE = ("fast-at", "fast-bat", "fast-bat, shifted, 1 step")
#: As published for CIFAR-10; the defaults for an image folder differ.
_TRAINING = ["--model", "preact-resnet-18", "--epochs", "20", "--batch-size", "128", "--lr", "0.2", "--weight-decay",
             "5e-4", "--schedule", "triangular", "--momentum", "0.9", "--momentum-cycling", "--augment", "flip-crop",
             "--precision", "bf16", "--channels-last"]  # fmt: skip
_TINY = ["--model", "small-cnn", "--epochs", "1", "--train-limit", "64", "--validation-steps", "1", "--precision",
         "bf16", "--channels-last"]  # fmt: skip
_TINY_PLAN = {"pgd": {"images": 20, "slice": 10, "steps": 1, "restarts": 1}, "autoattack": {"images": 4, "slice": 4}}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        title: title in the output.
        method: name of the method.
        options: options by flag.
        levels: the budget in units of 1/255.
        seed: seed of the run.
    """

    title: str
    method: str
    options: dict[str, str] = field(hash=False)
    levels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.title}, {self.levels}/255, seed {self.seed}"

    @property
    def is_alone(self) -> bool:
        """Whether nothing else may run on the device beside this cell."""
        return self.title in _ALONE and (self.levels, self.seed) == (8, 0)

    @property
    def folder(self) -> str:
        return "-".join(self.name.replace(",", "").replace("/255", "").split())


def cells() -> Iterator[Cell]:
    """Yield the cells: those that run alone, then the others seed after seed."""
    every = [
        Cell(title, method, options, levels, seed)
        for seed in range(10)
        for levels in (8, 16)
        for title, method, options in METHODS
    ]
    yield from sorted(every, key=lambda cell: not cell.is_alone)


def run(stage: Stage, device: torch.device, clock: Clock, *, data: str, runs: Path, workers: int, quick: bool) -> None:
    """Train and evaluate the cells, each in its own process, until the time is over. The next call resumes the rest.

    On a CUDA device, training steps are replayed as graphs.
    """
    waiting = [cell for cell in cells() if not stage.is_done(cell.name, "ra_aa")][: 1 if quick else None]
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    runs.mkdir(parents=True, exist_ok=True)
    try:
        while clock.left > 0 and (waiting or running):
            while waiting and len(running) < workers and _has_room(waiting[0], running):
                cell = waiting.pop(0)
                if workers > 1 and not cell.is_alone:
                    _shared(runs, cell).touch()  # stays, for a later call that resumes the run
                running[cell] = _begin(cell, device, data, runs, quick)
            for cell, process in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    stage.keep(cell.name, _row(cell, process.returncode, runs))
            time.sleep(0.2)
    finally:
        for cell, process in running.items():
            process.kill()
            process.wait()
            stderr(f"{cell.name}: stopped; the next call resumes it")


def _has_room(cell: Cell, running: Collection[Cell]) -> bool:
    return not running or not (cell.is_alone or any(other.is_alone for other in running))


def _shared(runs: Path, cell: Cell) -> Path:
    return runs / f"{cell.folder}.shared"


def words(cell: Cell, device: torch.device, data: str, runs: Path, quick: bool) -> list[str]:
    """Return the arguments of `adv-train fit` for a cell."""
    accelerate = "graph" if device.type == "cuda" else "off"
    return ["--data", data, "--method", cell.method, "--eps", f"{cell.levels}/255", "--seed", str(cell.seed),
            "--device", device.type, "--accelerate", accelerate, "--out", str(runs / cell.folder),
            *(_TINY if quick else _TRAINING),
            *(word for flag, value in cell.options.items() for word in (f"--{flag}", value))]  # fmt: skip


def _begin(cell: Cell, device: torch.device, data: str, runs: Path, quick: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu.cell", json.dumps(words(cell, device, data, runs, quick)),
               json.dumps(_TINY_PLAN if quick else PLAN)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    with (runs / f"{cell.folder}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _row(cell: Cell, status: int, runs: Path) -> Row:
    if status:
        said = (runs / f"{cell.folder}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"failure": f"status {status}: {said[-1] if said else 'no output'}"}
    folder = RunFolder(runs / cell.folder)
    metrics, timing = folder.metrics(), folder.timing()
    return {
        **figures(runs / cell.folder),
        "epochs": len(metrics),
        "alone": not _shared(runs, cell).exists(),
        "train_seconds": sum(line["train_seconds"] for line in timing),
        "epoch_seconds": statistics.median(line["train_seconds"] for line in timing),
        "prepare_seconds": sum(line.get("prepare_seconds", 0.0) for line in timing),
        "validation_seconds": sum(line["validation_seconds"] for line in timing),
        "config": folder.config().to_mapping(),
        "metrics": metrics,
    }
