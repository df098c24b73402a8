"""Test a GPU: does it agree with the CPU, how fast is it, what makes it fast, and what does training reach?

Each stage writes its record under results/ row by row and skips rows that exist, so that a repeated short call
continues where the last one stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import fast, ladder, right, summary, true
from benchmarks.gpu.stages import Clock, Stage
from benchmarks.registry import stderr

_STAGES = ("right", "fast", "ladder", "true")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages until the time is over, print a summary and return the exit status."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        stderr("error: torch finds no CUDA device; --device cpu tries the stages out.")
        return 2
    if options.device == "cuda" and (sys.version_info < (3, 12) or _torch() < (2, 11)):
        stderr(
            f"error: records are made with Python 3.12 and torch 2.11 or newer, not {sys.version_info[:2]}, {_torch()}"
        )
        return 2
    device, clock = torch.device(options.device), Clock(60 * options.minutes)
    stages = {
        # Rows of `right` count only for the same code; times and accuracies remain of use when the code changes.
        name: Stage(options.out / f"gpu-{name}.json", device, quick=options.quick, same_code=name == "right")
        for name in _STAGES
    }
    for name in options.stages:
        if name == "right":
            right.run(stages[name], device, clock, quick=options.quick)
        elif name == "fast":
            fast.run(stages[name], device, clock, quick=options.quick)
        elif name == "ladder":
            ladder.run(stages[name], device, clock, quick=options.quick)
        elif options.data:
            true.run(
                stages[name],
                device,
                clock,
                data=options.data,
                runs=options.runs,
                workers=options.workers,
                quick=options.quick,
            )
        else:
            stderr("stage `true` trains on images: give --data imagefolder:PATH (train/<class>/, test/<class>/)")
    print(summary.of(stages))
    return 0


def _torch() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="NAME", help="training data of `true`, as for `adv-train fit --data`")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this many minutes (9)")
    parser.add_argument(
        "--stages", nargs="+", choices=_STAGES, default=_STAGES, metavar="STAGE", help=" ".join(_STAGES)
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--workers", type=int, default=3, help="number of runs of `true` at the same time (3)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the records (results)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs") / "gpu", help="folder of the training runs (runs/gpu)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test that everything runs")
    return parser
