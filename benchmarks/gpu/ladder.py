"""The gain of each optimisation: whole training steps from the slow path to the fast one, one switch at a time."""

from __future__ import annotations

import gc
import math
import statistics
from functools import partial

import torch

from adv_train import accelerate
from adv_train.bench.count import flops
from adv_train.bench.timing import interleaved
from adv_train.data import Batch
from adv_train.methods import METHODS
from adv_train.trainer import Trainer
from benchmarks.gpu import kernels, matrix, steps
from benchmarks.gpu.rungs import FIRST, Rung, prepared, rungs
from benchmarks.gpu.stages import Clock, Row, Stage

TITLES = ("fast-at", "pgd-at", "fast-bat", "fast-bat, shifted, 1 step")
_TRAINING_IMAGES = 45_000


def run(stage: Stage, device: torch.device, clock: Clock, *, quick: bool) -> None:
    """Measure every rung of every method."""
    for title in TITLES[:: 2 if quick else 1]:
        name, options = steps.METHODS[title]
        for rung in rungs(METHODS.create(name, **options)):
            stage.do(f"{title}: {rung.name}", clock, partial(measured, stage, title, rung, device, quick=quick))


def measured(stage: Stage, title: str, rung: Rung, device: torch.device, *, quick: bool) -> Row:
    """Return the cost of a training step on a rung, or the reason why it cannot run on this device.

    Raises:
        UserError: if `torch.compile` does not work here.
        RuntimeError: if the loss becomes infinite or NaN.
    """
    kind = rung.switches.get("accelerate", "off")
    if kind == "compile":
        accelerate.check(kind, device)
        torch.compiler.reset()  # dynamo stops compiling a function after several models
    before = _cleared(device)
    trainer, batch = prepared(title, rung.switches, device, quick=quick)
    if kind == "graph" and device.type != "cuda":
        found = accelerate.obstacles(lambda: trainer.step(batch))
        return {"reason": "a graph needs a CUDA device", "capturable": not found, "obstacles": found}
    take = partial(trainer.replayed or trainer.step, batch)
    (seconds,) = interleaved([take], repeats=1 if quick else 20, device=device, progress=False)
    peak = None if before is None else (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not math.isfinite(float(trainer.step.loss)):
        raise RuntimeError("the loss of the training steps is not finite, so their time is meaningless")
    median = statistics.median(seconds)
    return {
        "milliseconds": 1e3 * median,
        "images_per_second": len(batch.y) / median,
        "epoch_seconds": _TRAINING_IMAGES * median / len(batch.y),
        **_speedups(stage, title, rung, 1e3 * median),
        "prepare_seconds": trainer.prepared() if kind != "off" else None,
        "peak_mib": peak,
        **_work(trainer, batch, median),
        **_kernels(take, device, 1 if quick else 3),
    }


def _cleared(device: torch.device) -> int | None:
    """Free the memory of the rung before; return the bytes that stay allocated, None on a CPU."""
    gc.collect()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _speedups(stage: Stage, title: str, rung: Rung, milliseconds: float) -> Row:
    """Return the speed-ups over the rung before and over the first rung; None for a rung that was not measured."""

    def over(name: str | None) -> float | None:
        row = stage.rows.get(f"{title}: {name}", {})
        return row["milliseconds"] / milliseconds if "milliseconds" in row and row["on"] == stage.on else None

    if rung.name == FIRST:
        return {"speedup": 1.0, "speedup_over_first": 1.0}
    return {"speedup": over(rung.before), "speedup_over_first": over(FIRST)}


def _work(trainer: Trainer, batch: Batch, seconds: float) -> Row:
    with torch.compiler.set_stance("force_eager"):  # The counter does not count the products inside compiled code.
        count = flops(lambda: trainer.step(batch))
    rate = matrix.rate(trainer.config.compute.precision, trainer.device)
    reached = count / seconds
    return {"flops": count, "flops_per_second": reached, "matrix_rate": rate, "of_matrix_rate": reached / rate}


def _kernels(take: partial[None], device: torch.device, count: int) -> Row:
    shares, milliseconds = kernels.shares(take, device, steps=count)
    if milliseconds == 0:
        return {"shares": None, "unseen": "torch's profiler recorded no kernel; CUPTI may be missing or forbidden"}
    return {"shares": shares, "kernel_milliseconds": milliseconds}
