"""Whether a GPU computes what the CPU does."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adv_train import data, methods, models
from adv_train.precision import computed_in
from adv_train.threat import Threat
from benchmarks.gpu.catalogue import Case, cases, hypergradient
from benchmarks.gpu.stages import Clock, Row, Stage
from benchmarks.measure import relative_error

#: Largest relative error of a hypergradient. Single-precision solves end apart by about what they leave unsolved.
_GOALS = {torch.float64: 1e-8, torch.float32: 2e-3}
#: Without gradient alignment, which draws a point of its own on the device that trains.
_METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("standard", "standard", {}),
    ("fast-at", "fast-at", {}),
    ("pgd-at", "pgd-at", {}),
    ("fast-bat", "fast-bat", {}),
    ("fast-bat reversed", "fast-bat", {"ig_weight": -1.0}),
)
#: Arithmetic of a training step, and the largest relative error of its gradient against the CPU in float64. Only
#: float64 has a goal: attack steps take signs of gradients, so less precision changes whole pixels, on a CPU as well.
_ARITHMETIC: tuple[tuple[str, torch.dtype, float | None], ...] = (
    ("fp32", torch.float64, 1e-12),
    ("fp32", torch.float32, None),
    ("tf32", torch.float32, None),
    ("bf16", torch.float32, None),
)


def run(stage: Stage, device: torch.device, clock: Clock, *, quick: bool) -> None:
    """Compare every case of the catalogue, then every training method, on the device and on the CPU."""
    found = list(cases())[:: 20 if quick else 1]
    for dtype, goal in _GOALS.items():
        for case in found:
            stage.do(f"{_name(dtype)}: {case.name}", clock, partial(_hypergradient, case, device, dtype, goal))
    for model in ("small-cnn",) if quick else ("small-cnn", "preact-resnet-18"):
        for title, method, options in _METHODS[-2:] if quick else _METHODS:
            for precision, kind, limit in _ARITHMETIC:
                name = f"{model}, {title}: {precision} {_name(kind)}"
                stage.do(name, clock, partial(_training, model, method, options, device, precision, kind, limit))


def _hypergradient(case: Case, device: torch.device, dtype: torch.dtype, goal: float) -> Row:
    begun = time.perf_counter()
    here = hypergradient(case, torch.device("cpu"), dtype)
    middle = time.perf_counter()
    there = hypergradient(case, device, dtype)
    seconds = time.perf_counter() - middle
    error = max(_error(b, a) for a, b in zip(here, there, strict=True))
    return {"error": error, "goal": goal, "met": error <= goal, "seconds": seconds, "cpu_seconds": middle - begun}


def _error(found: Tensor, exact: Tensor) -> float:
    return 0.0 if bool((found.cpu() == exact.cpu()).all()) else relative_error(found, exact)


def _training(
    model: str,
    method: str,
    options: dict[str, Any],
    device: torch.device,
    precision: str,
    dtype: torch.dtype,
    goal: float | None,
) -> Row:
    exact = _gradient(model, method, options, torch.device("cpu"), "fp32", torch.float64)
    found = _gradient(model, method, options, device, precision, dtype)
    cosine = float(torch.nn.functional.cosine_similarity(found, exact, dim=0))
    error = relative_error(found, exact)
    return {"error": error, "cosine": cosine} | ({} if goal is None else {"goal": goal, "met": error <= goal})


def _gradient(
    model: str, method: str, options: dict[str, Any], device: torch.device, precision: str, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of one training step on fixed images, flattened, in double precision on the CPU."""
    generator = torch.Generator().manual_seed(0)
    described: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = models.create(model, **described, seed=0).to(device, dtype).train()
    x = torch.rand(16, 3, 32, 32, generator=generator, dtype=torch.float64).to(device, dtype)
    y = torch.randint(10, (16,), generator=generator).to(device)
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    eps = 8 / 255
    start = (eps * (2 * noise - 1)).clamp(-x, 1 - x)
    chosen = methods.METHODS.create(method, **options)
    batch = data.Batch(x, y, torch.arange(len(y), device=device))
    with computed_in(precision, device):
        step = chosen(network, dict(network.named_parameters()), batch, Threat("linf", eps), start=start)
    return torch.cat([grad.detach().cpu().double().flatten() for grad in step.grads.values()])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
