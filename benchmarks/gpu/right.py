"""Whether a GPU computes what the CPU does, a graph or compiled code what eager steps do, and a killed run resumes."""

from __future__ import annotations

import time
from functools import lru_cache, partial

import torch
from torch import Tensor

from adv_train.methods import METHODS
from benchmarks.gpu import compiled, replays, resumed, steps
from benchmarks.gpu.catalogue import Case, cases, hypergradient
from benchmarks.gpu.stages import Clock, Row, Stage
from benchmarks.measure import relative_error

#: By name: dtype, precision of the products inside the objectives (`adv_train.precision`), and the largest relative
#: error of a lower solution and a hypergradient against the CPU in the same arithmetic. Single-precision solves differ
#: by about their residuals; bfloat16 has 8 bits, and its error on the CPU is at most 4e-3.
_HYPERGRADIENTS: dict[str, tuple[torch.dtype, str, float]] = {
    "float64": (torch.float64, "fp32", 1e-8),
    "float32": (torch.float32, "fp32", 2e-3),
    "bf16": (torch.float32, "bf16", 2e-2),
}
#: The same for the gradient of a training step, but against the CPU in float64. Attacks take signs of gradients and
#: batch norm divides by small deviations, so lower precision changes whole pixels, on the CPU too: if the error of the
#: CPU is larger than the goal, twice that error is allowed.
_TRAINING: dict[str, tuple[torch.dtype, str, float]] = {
    "float64": (torch.float64, "fp32", 1e-12),
    "float32": (torch.float32, "fp32", 2e-3),
    "tf32": (torch.float32, "tf32", 5e-2),
    "bf16": (torch.float32, "bf16", 0.15),
}


def run(stage: Stage, device: torch.device, clock: Clock, *, quick: bool) -> None:
    """Compare cases of the catalogue and training methods with the CPU, then other ways to run them with eager runs."""
    found = list(cases())[:: 20 if quick else 1]
    for name, (dtype, precision, goal) in _HYPERGRADIENTS.items():
        for case in found:
            make = partial(_hypergradient, case, device, dtype, precision, goal)
            stage.do(f"{name}: {case.name}", clock, make)
    for model in ("small-cnn",) if quick else ("small-cnn", "preact-resnet-18"):
        for title in steps.METHODS:
            for name in _TRAINING:
                make = partial(_training, model, title, device, name)
                stage.do(f"{model}, {title}: {name}", clock, make)
        for name in compiled.GOALS:
            make = partial(compiled.against_eager, model, name, device)
            stage.do(f"compiled, {model}, {compiled.TITLE}: {name}", clock, make)
    for method in ("fast-bat",) if quick else METHODS.names():
        stage.do(f"replayed, {method}: fp32", clock, partial(replays.against_eager, method, device))
        for precision in ("fp32",) if quick else ("fp32", "bf16"):
            make = partial(resumed.killed_and_resumed, method, device, precision)
            stage.do(f"killed and resumed, {method}: {precision}", clock, make)


def _hypergradient(case: Case, device: torch.device, dtype: torch.dtype, precision: str, goal: float) -> Row:
    begun = time.perf_counter()
    here = hypergradient(case, torch.device("cpu"), dtype, precision)
    middle = time.perf_counter()
    there = hypergradient(case, device, dtype, precision)
    seconds = time.perf_counter() - middle
    error = max(_error(b, a) for a, b in zip(here, there, strict=True))
    return {"error": error, "goal": goal, "met": error <= goal, "seconds": seconds, "cpu_seconds": middle - begun}


def _training(model: str, title: str, device: torch.device, name: str) -> Row:
    dtype, precision, goal = _TRAINING[name]
    exact = _on_cpu(model, title, torch.float64, "fp32")
    found = steps.gradient(model, title, device, dtype, precision)
    # A CPU has no TensorFloat-32; bfloat16 is the coarser of the two.
    cpu_error = _error(_on_cpu(model, title, dtype, "bf16" if name == "tf32" else precision), exact)
    error, goal = _error(found, exact), goal if name == "float64" else max(goal, 2 * cpu_error)
    cosine = float(torch.nn.functional.cosine_similarity(found, exact, dim=0))
    return {"error": error, "goal": goal, "met": error <= goal, "cosine": cosine, "cpu_error": cpu_error}


@lru_cache(maxsize=4)
def _on_cpu(model: str, title: str, dtype: torch.dtype, precision: str) -> Tensor:
    return steps.gradient(model, title, torch.device("cpu"), dtype, precision)


def _error(found: Tensor, exact: Tensor) -> float:
    return 0.0 if bool((found.cpu() == exact.cpu()).all()) else relative_error(found, exact)
