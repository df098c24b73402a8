"""How fast a GPU takes training steps, in each precision; their gradients as CUDA graphs; and `make bench` on it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from adv_train import bench
from adv_train.accelerate import obstacles
from adv_train.bench.by_hand import STEPS
from adv_train.config import TrainingConfig
from adv_train.methods import METHODS
from adv_train.precision import computed_in
from adv_train.reproduction.cost import validation
from benchmarks.gpu import steps
from benchmarks.gpu.graph import replayed
from benchmarks.gpu.stages import Clock, OutOfTime, Row, Stage
from benchmarks.registry import stderr

#: Precision and memory layout, slowest first.
_LADDER = (("fp32", False), ("tf32", False), ("tf32", True), ("bf16", False), ("bf16", True))
#: These are the most informative on a device and run first, then the rest of `make bench`.
_FIRST = ("batches", "boxes", "ridge", "cleaning", "maml", "checkpoints")
_LIMIT = 240.0
#: CIFAR-10 without its validation split, and the default validation.
_EPOCH = bench.Epoch(45_000, validation(TrainingConfig(epochs=1, batch_size=128), 5_000))


def run(stage: Stage, device: torch.device, clock: Clock, *, quick: bool) -> None:
    """Time every method at each precision and batch size, then the benchmarks of `blo`."""
    for batch in (4,) if quick else (128, 512):
        for precision, channels_last in _LADDER[-1:] if quick else _LADDER:
            name = f"steps: batch {batch}, {precision}{', channels last' if channels_last else ''}"
            stage.do(name, clock, partial(_steps, device, batch, precision, channels_last, quick))
    for benchmark in _FIRST[:1] if quick else _FIRST:
        _both_dtypes(stage, benchmark, device, clock, quick)
    for batch in (4,) if quick else (128, 512):
        for precision in ("bf16",) if quick else ("tf32", "bf16"):
            for title in steps.METHODS:
                make = partial(_graph, title, device, batch, precision, by_hand=False, quick=quick)
                stage.do(f"graph: batch {batch}, {precision}, channels last, {title}", clock, make)
    for title in STEPS:
        make = partial(_graph, title, device, 4 if quick else 128, "bf16", by_hand=True, quick=quick)
        stage.do(f"graph: batch {4 if quick else 128}, bf16, channels last, {title} by hand", clock, make)
    for benchmark in () if quick or clock.left <= 0 else _rest():
        _both_dtypes(stage, benchmark, device, clock, quick)


def _steps(device: torch.device, batch: int, precision: str, channels_last: bool, quick: bool) -> Row:
    rows = bench.run(
        model_name="small-cnn" if quick else "preact-resnet-18",
        batch_size=batch,
        repeats=1 if quick else 10,
        device=device,
        precision=precision,
        channels_last=channels_last,
        epoch=_EPOCH,
        progress=False,
    )
    for row in rows:
        stderr(f"  {row.name}: {row.milliseconds:.1f} ms, {row.images_per_second:.0f} images/s")
    return {"methods": [asdict(row) for row in rows]}


def _graph(title: str, device: torch.device, batch: int, precision: str, *, by_hand: bool, quick: bool) -> Row:
    """Time the gradient of a step as a graph, without the optimiser; `benchmarks.gpu.ladder` times whole steps."""
    model = "small-cnn" if quick else "preact-resnet-18"
    take = steps.prepared(model, title, device, batch=batch, channels_last=True, by_hand=by_hand)
    with computed_in(precision, device):
        if device.type != "cuda":
            found = obstacles(take)
            return {"capturable": not found, "obstacles": found}
        milliseconds, apart = replayed(take, repeats=10)
    return {"capturable": True, **gradients(title, batch, milliseconds), "apart": apart}


def gradients(title: str, batch: int, milliseconds: float) -> Row:
    """Return the pace of gradients, and the seconds that those of an epoch take: all its steps, without updates.

    Args:
        title: one of `steps.METHODS`.
        batch: images in a batch.
        milliseconds: time of the gradient of a step.
    """
    name, options = steps.METHODS[title]
    seconds = _EPOCH.seconds(milliseconds / 1e3, batch, METHODS.create(name, **options).replays())
    pace = 1e3 * batch / milliseconds
    return {"milliseconds": milliseconds, "images_per_second": pace, "gradient_epoch_seconds": seconds}


def _both_dtypes(stage: Stage, benchmark: str, device: torch.device, clock: Clock, quick: bool) -> None:
    for dtype in ("float32",) if quick else ("float32", "float64"):
        stage.do(f"bench: {benchmark}, {dtype}", clock, partial(_benchmark, benchmark, dtype, device, clock, quick))


def _rest() -> list[str]:
    # In its own process, because some load libraries that reserve a GPU's memory.
    command = [sys.executable, "-m", "benchmarks", "--list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[0] for line in listed if line.split()[0] not in _FIRST]


def _benchmark(name: str, dtype: str, device: torch.device, clock: Clock, quick: bool) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        words = [name, "--device", device.type, "--dtype", dtype, "--rounds", "5", "--out", str(out)]
        command = [sys.executable, "-m", "benchmarks", *words, *(["--quick"] if quick else [])]
        seconds = min(_LIMIT, clock.left)
        try:
            subprocess.run(command, check=True, timeout=seconds, stdout=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            if seconds < _LIMIT:
                raise OutOfTime from None
            raise RuntimeError(f"did not end within {seconds:.0f} s") from None
        found = json.loads(out.read_text(encoding="utf-8"))["benchmarks"][name]
    return {"tables": found["tables"], "goals": found["goals"]}
