"""Train and attack four methods on handwritten digits, then write one table and a report: minutes on two cores.

example:
  adv-train demo --out runs/demo

It does the same as these commands, for standard, fast-at, pgd-at and fast-bat, and skips what is already done:
  adv-train fit --preset digits-fast-bat --out runs/demo/fast-bat
  adv-train eval runs/demo/fast-bat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from adv_train import data
from adv_train.cli.command_line import Progress, options
from adv_train.cli.processes import run_cells
from adv_train.comparison import Cell, Judgement
from adv_train.config import resolve
from adv_train.errors import UserError
from adv_train.evaluate_run import STANDARD
from adv_train.files import make_folder
from adv_train.report import NextStep, RunSummary, results_table, write_report
from adv_train.report import command as written
from adv_train.summaries import summarise
from adv_train.values import Range, Seed

METHODS = ("standard", "fast-at", "pgd-at", "fast-bat")
_NAMES = {"pgd-at": "pgd-at, 2 steps"}
_NEXT = (
    NextStep(
        "Train on CIFAR-10 with the published hyperparameters (downloads 170 MB; minutes to an hour on a GPU).",
        "adv-train fit --preset cifar10-8-fast-bat --out runs/cifar10-fast-bat",
    ),
    NextStep("Then evaluate it.", "adv-train eval runs/cifar10-fast-bat --report"),
)


@dataclass(frozen=True, kw_only=True)
class Demo(Progress):
    """The demonstration.

    Attributes:
        out: Folder for the runs and the report.
        seed: Seed of the training.
        epochs: Number of epochs; fewer for a quick look.
        limit: Attack only so many of the 360 test images, for a quick look.
    """

    out: Path = Path("runs/demo")
    seed: Seed = 0
    epochs: Annotated[int, Range(1)] = 30
    limit: Annotated[int, Range(1)] | None = None


def read(words: Sequence[str]) -> Demo:
    """Read the command line."""
    return options(Demo, words, "adv-train demo", __doc__ or "")


def run(words: Sequence[str]) -> int:
    """Train and evaluate what is not done yet, write the report and print the table."""
    command = read(words)
    images = len(data.load("digits", root="").test)
    if command.limit is not None:
        images = min(images, command.limit)
    flags = {"seed": command.seed, "epochs": command.epochs}
    out = command.out
    make_folder(out)
    cells = [_cell(method, out, images, flags) for method in METHODS]
    found: dict[Path, RunSummary] = {}
    # The first run needs the least time and starts last, so that no core waits long for the last one to finish.
    with closing(run_cells([*cells[1:], cells[0]], progress=command.shown)) as ended:
        for cell, failure in ended:
            if failure:
                raise UserError(f"{cell.name}: {failure}")
            found[cell.out] = summarise(cell.out, cell.name)  # Now, while the other runs go on.

    summaries = [found.get(cell.out) or summarise(cell.out, cell.name) for cell in cells]
    first = summaries[0]
    title = f"Handwritten digits, eps {first.config['threat']['eps']}, {first.evaluation['n']} test images"
    again = [NextStep("Train what is missing, evaluate it and write this page again.", written("demo", *words))]
    write_report(out / "report.html", summaries, title=title, again=again, next_steps=_NEXT)
    print(f"\n{title}\n\n{results_table(summaries)}\n")
    print(
        "SA: accuracy on clean images. RA-PGD: accuracy under PGD (50 steps, 10 restarts). "
        "RA-AA: accuracy under AutoAttack.\n"
        "F/step: cost of a training step in forward passes. Implicit share: |implicit gradient| / |direct gradient|.\n"
    )
    print(f"The report, with training curves and adversarial examples, is {out / 'report.html'}\n\nWhat to run next:")
    for step in _NEXT:
        print(f"  {step.why}\n    {step.command}")
    return 0


def _cell(method: str, out: Path, images: int, flags: Mapping[str, int]) -> Cell:
    config = resolve({**flags, "device": "cpu"}, preset=f"digits-{method}")
    cell = Cell(_NAMES.get(method, method), out / method, config, (Judgement("best", STANDARD, images),))
    cell.run.check(config)
    return cell
