"""How fast a GPU takes training steps, in each precision, eager and as a CUDA graph; and `make bench` on it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adv_train import bench, data, methods, models
from adv_train.bench.by_hand import STEPS
from adv_train.bench.run import CASES
from adv_train.precision import computed_in
from adv_train.threat import Threat
from benchmarks.gpu.graph import replayed
from benchmarks.gpu.stages import Clock, Row, Stage

#: Precision and memory layout, slowest first.
_LADDER = (("fp32", False), ("tf32", False), ("tf32", True), ("bf16", False), ("bf16", True))
#: Those of `make bench` whose figures a device changes and that need no other library.
_BENCHMARKS = ("batches", "boxes", "ridge", "cleaning", "maml", "checkpoints")
_TRAINING_IMAGES = 45_000


def run(stage: Stage, device: torch.device, clock: Clock, *, quick: bool) -> None:
    """Time every method at each precision and batch size, then the benchmarks of `blo`."""
    for batch in (4,) if quick else (128, 512):
        for precision, channels_last in _LADDER[-1:] if quick else _LADDER:
            name = f"steps: batch {batch}, {precision}{', channels last' if channels_last else ''}"
            stage.do(name, clock, partial(_steps, device, batch, precision, channels_last, quick))
    if device.type == "cuda":
        for batch in (128, 512):
            for precision, channels_last in (_LADDER[2], _LADDER[-1]):
                for title, method, options in CASES:
                    name = f"graph: batch {batch}, {precision}, channels last, {title}"
                    stage.do(name, clock, partial(_graph, device, batch, precision, channels_last, method, options))
        for method in STEPS:
            name = f"graph: batch 128, bf16, channels last, {method} by hand"
            stage.do(name, clock, partial(_graph, device, 128, "bf16", True, method, None))
    for benchmark in _BENCHMARKS[:1] if quick else _BENCHMARKS:
        for dtype in ("float32",) if quick else ("float32", "float64"):
            name = f"bench: {benchmark}, {dtype}"
            stage.do(name, clock, partial(_benchmark, benchmark, dtype, device, clock, quick))


def _steps(device: torch.device, batch: int, precision: str, channels_last: bool, quick: bool) -> Row:
    rows = bench.run(
        model_name="small-cnn" if quick else "preact-resnet-18",
        batch_size=batch,
        repeats=1 if quick else 10,
        device=device,
        precision=precision,
        channels_last=channels_last,
        progress=False,
    )
    for row in rows:
        print(f"  {row.name}: {row.milliseconds:.1f} ms, {row.images_per_second:.0f} images/s", file=sys.stderr)
    return {"methods": [asdict(row) | {"epoch_seconds": _TRAINING_IMAGES / row.images_per_second} for row in rows]}


def _graph(
    device: torch.device, batch: int, precision: str, channels_last: bool, method: str, options: dict[str, Any] | None
) -> Row:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    described: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = models.create("preact-resnet-18", **described, seed=0).to(device).to(memory_format=layout).train()
    x = torch.rand(batch, 3, 32, 32, generator=generator).to(device, memory_format=layout)
    y = torch.randint(10, (batch,), generator=generator).to(device)
    eps = 8 / 255
    start = (eps * (2 * torch.rand(x.shape, generator=generator) - 1)).to(device)
    params: dict[str, Tensor] = dict(model.named_parameters())
    images = data.Batch(x, y, torch.arange(len(y), device=device))
    chosen = methods.METHODS.create(method, **(options or {}))

    def step() -> dict[str, Tensor]:
        with computed_in(precision, device):
            if options is None:
                return STEPS[method](model, x, y, start, eps)
            # Gradient alignment draws from the default generator, which a graph knows.
            return chosen(model, params, images, Threat("linf", eps), start=start).grads

    milliseconds, apart = replayed(step, repeats=10)
    return {"milliseconds": milliseconds, "images_per_second": 1e3 * batch / milliseconds, "apart": apart,
            "epoch_seconds": _TRAINING_IMAGES / (1e3 * batch / milliseconds)}  # fmt: skip


def _benchmark(name: str, dtype: str, device: torch.device, clock: Clock, quick: bool) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        words = [name, "--device", device.type, "--dtype", dtype, "--rounds", "5", "--out", str(out)]
        command = [sys.executable, "-m", "benchmarks", *words, *(["--quick"] if quick else [])]
        seconds = max(5.0, min(90.0, clock.left))
        try:
            subprocess.run(command, check=True, timeout=seconds, stdout=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"did not end within {seconds:.0f} s") from None
        found = json.loads(out.read_text(encoding="utf-8"))["benchmarks"][name]
    return {"tables": found["tables"], "goals": found["goals"]}
