"""Train and attack four methods on handwritten digits, then write one table and a report: minutes on two cores.

example:
  adv-train demo --out runs/demo

Does what these commands do, for standard, fast-at, pgd-at and fast-bat, and skips what is already done:
  adv-train fit --preset digits-fast-bat --out runs/demo/fast-bat
  adv-train eval runs/demo/fast-bat
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from adv_train import data, values
from adv_train.cli.flags import add_progress_flags
from adv_train.cli.parts import Part, run_parts
from adv_train.evaluate_run import summarise
from adv_train.files import make_folder
from adv_train.recipes import resolve
from adv_train.records import RunFolder
from adv_train.report import NextStep, results_table, write_report

METHODS = ("standard", "fast-at", "pgd-at", "fast-bat")
_NAMES = {"pgd-at": "pgd-at, 2 steps"}
_NEXT = (
    NextStep(
        "The same on CIFAR-10 with the published hyperparameters (downloads 170 MB; minutes to an hour on a GPU).",
        "adv-train fit --preset cifar10-8-fast-bat --out runs/cifar10-fast-bat",
    ),
    NextStep("Then judge it.", "adv-train eval runs/cifar10-fast-bat --report"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument("--seed", metavar="N", default="0", help="of training (default: 0)")
    parser.add_argument("--epochs", metavar="N", default="30", help="fewer for a quick look (default: 30)")
    parser.add_argument("--limit", metavar="N", help="attack only N of the 360 test images, for a quick look")
    add_progress_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train and judge what is not done yet, and show all of it."""
    found = {name: values.whole(low)(getattr(arguments, name), name) for name, low in (("seed", 0), ("epochs", 1))}
    images = len(data.load("digits", root="").test)
    if arguments.limit is not None:
        images = min(images, values.whole(1)(arguments.limit, "limit"))
    out: Path = arguments.out
    make_folder(out)
    parts = [_part(method, out, images, found) for method in METHODS]
    run_parts(parts, progress=arguments.progress)

    summaries = [summarise(part.out, part.name) for part in parts]
    first = summaries[0]
    title = f"Handwritten digits, eps {first.config['eps']}, {first.evaluation['n']} test images"
    write_report(out / "report.html", summaries, title=title, next_steps=_NEXT)
    print(f"\n{title}\n\n{results_table(summaries)}\n")
    print(
        "SA: accuracy on clean images. RA-PGD: under PGD, 50 steps, 10 restarts. RA-AA: under AutoAttack.\n"
        "F/step: cost of a training step in forward passes. Implicit share: |implicit| / |direct gradient|.\n"
    )
    print(f"The report, with curves and adversarial examples, is {out / 'report.html'}\n\nWhat to run next:")
    for step in _NEXT:
        print(f"  {step.why}\n    {step.command}")
    return 0


def _part(method: str, out: Path, images: int, flags: Mapping[str, int]) -> Part:
    preset = f"digits-{method}"
    config = resolve({**flags, "device": "cpu"}, preset=preset)
    RunFolder(out / method).check(config)
    words = ["--preset", preset, "--device", "cpu"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return Part(_NAMES.get(method, method), out / method, config, tuple(words), images)
