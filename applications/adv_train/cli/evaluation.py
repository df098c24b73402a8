"""Evaluate a trained model: clean accuracy (SA), and robust accuracy under PGD-50-10 and AutoAttack (RA-PGD, RA-AA).

examples:
  adv-train eval runs/a
  adv-train eval runs/a --checkpoint last --report
  adv-train eval runs/a --no-autoattack --limit 1000     (a quick look)
  adv-train eval runs/a --eps 16/255 --table latex
  adv-train eval runs/a --eps 4/255,8/255,16/255         (one record for each radius)
  adv-train eval runs/a --attacks "pgd, apgd, square(queries=1000), transfer(source=runs/b)"
  adv-train eval runs/a --attacks cascade --save-images runs/a/images.npz
  adv-train eval runs/a --norm l2 --eps 128/255
  torchrun --nproc-per-node 2 -m adv_train eval runs/a   (on two GPUs, each with half the images)
  adv-train eval --checkpoint-file weights.pt --model preact-resnet-18 --data cifar10 --eps 8/255
  adv-train eval --checkpoint-file trades.pt --model wrn-34-10 --normalisation none --data cifar10 --eps 8/255
  adv-train eval --model my_package.nets:resnet --data cifar10 --eps 8/255

Each evaluation writes a record into RUN/evaluations/. RUN/eval.json lists all records, and shows the most complete one
of the best checkpoint; RUN/outcomes.npz holds its outcome for each test image. The command skips attacks that have a
record and resumes interrupted ones; --again repeats them. Brackets in the table are 95 % Wilson intervals in percent,
which measure the effect of the choice of test images. A model of your own must take images in [0, 1] and contain its
normalisation.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train.attacks import ATTACKS, Attack
from adv_train.attacks.judging import Judging
from adv_train.attacks.named import named_attacks
from adv_train.cli.command_line import options
from adv_train.cli.evaluated import about, print_classes, radius, rounding, say, told
from adv_train.cli.judged_model import JudgedModel, check_run_alone, foreign
from adv_train.devices import find_device
from adv_train.errors import UserError
from adv_train.evaluate_run import evaluate_run, evaluate_weights
from adv_train.evaluation import Evaluation, check_image_file
from adv_train.ranks import started
from adv_train.records import RunFolder
from adv_train.report import NextStep, RunSummary, once_more, results_table, write_report
from adv_train.report import command as written
from adv_train.summaries import summarise, summarise_record
from adv_train.threat import Threat
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Eval(JudgedModel):
    """The model to evaluate, and the attacks.

    Attributes:
        eps: Radius of the attacks, or several radii as in 4/255,8/255; by default the radius of training.
        attacks: Attacks, separated by commas (see `adv-train list attacks`), with options as in "square(queries=1000)".
        pgd: Run PGD if --attacks lists it.
        autoattack: Run AutoAttack if --attacks lists it.
        pgd_steps: Number of steps of the attack `pgd`.
        pgd_restarts: Number of random starts of the attack `pgd`.
        again: Repeat attacks that have a record.
        save_images: File NAME.npz for the adversarial images, rounded to 8 bits; the model is also evaluated on the
            rounded images. With several --eps, the files are NAME-epsX.npz, where X is the radius as a decimal.
        table: Format of the table.
        report: Also write report.html beside eval.json.
    """

    eps: tuple[Annotated[float, Range(0)], ...] | None = None
    attacks: str = "pgd,autoattack"
    pgd: bool = True
    autoattack: bool = True
    pgd_steps: Annotated[int, Range(1)] = 50
    pgd_restarts: Annotated[int, Range(1)] = 10
    again: bool = False
    save_images: Path | None = None
    table: Literal["markdown", "csv", "latex"] = "markdown"
    report: bool = False


def read(words: Sequence[str]) -> Eval:
    """Read the command line."""
    return options(Eval, words, "adv-train eval", __doc__ or "", positional="run")


def run(words: Sequence[str]) -> int:
    """Evaluate the model and print a table."""
    command = read(words)
    judged = []
    with started(find_device(command.device)) as ranks, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # The record keeps them; they are printed below the table.
        for eps in _budgets(command):
            one = replace(command, eps=None if eps is None else (eps,), save_images=_image_file(command, eps))
            outcome, folder, summary = _run(one, command.run) if command.run else _foreign(one)
            judged.append((outcome, RunSummary(**{**vars(summary), "evaluation": outcome.summary()})))
    if not ranks.first:
        return 0
    several = len(judged) > 1
    rows = [replace(shown, name=f"{shown.name}, {radius(outcome)}") if several else shown for outcome, shown in judged]
    print(results_table(rows, command.table))
    for outcome, shown in judged:
        if command.table == "markdown":
            print_classes(shown, f"At {radius(outcome)}:" if several else "")
        for line in told(outcome, several):
            print(line, file=sys.stderr)
        say(about(outcome, folder), command.table)
    if command.save_images is not None:
        for outcome, _ in judged:
            say(rounding(outcome), command.table)
    if command.report:
        report = folder / "report.html"
        again, further = _steps(folder if command.run else None, words)
        title = f"{summary.name} on {outcome.about['data']}"
        write_report(report, [summary], title=title, again=again, next_steps=further)
        say(f"The report is {report}", command.table)
    return 0


def _budgets(command: Eval) -> list[float | None]:
    """Return each budget once, in the order given; None means the budget of training."""
    if command.eps is None:
        return [None]
    if not command.eps:
        raise UserError("--eps names no budget: give one or several, such as 4/255,8/255.")
    norm = command.norm or (RunFolder(command.run).config().threat.norm if command.run else "linf")
    for eps in command.eps:
        Threat(norm, eps)  # Raises for an invalid budget before the first evaluation starts.
    return list(dict.fromkeys(command.eps))


def _image_file(command: Eval, eps: float | None) -> Path | None:
    """Return the file for the adversarial images of a budget."""
    path = command.save_images
    if path is None:
        return None
    check_image_file(path)
    several = command.eps is not None and len(set(command.eps)) > 1
    # The shortest text that reads back as this number, so that no two budgets share a file.
    return path.with_name(f"{path.stem}-eps{repr(eps).removesuffix('.0')}{path.suffix}") if several else path


def _run(command: Eval, folder: Path) -> tuple[Evaluation, Path, RunSummary]:
    check_run_alone(command)
    outcome = evaluate_run(
        folder,
        which=command.checkpoint or "best",
        norm=command.norm,
        eps=command.eps[0] if command.eps else None,
        data_name=command.data,
        data_root=command.data_root,
        **_common(command),
    )
    return outcome, folder, summarise(folder)


def _foreign(command: Eval) -> tuple[Evaluation, Path, RunSummary]:
    given = foreign(command, "eval", command.eps)
    outcome = evaluate_weights(
        given.model,
        given.data,
        given.folder,
        weights=given.weights,
        normalisation=command.normalisation,
        norm=command.norm or "linf",
        eps=command.eps[0] if command.eps else 0.0,
        data_root=command.data_root or "data",
        **_common(command),
    )
    return outcome, given.folder, summarise_record(outcome, given.name)


def _common(command: Eval) -> dict[str, Any]:
    return {
        "attacks": _attacks(command),
        "limit": command.limit,
        "judging": Judging.of(command.seed, command.batch_size, command.shown),
        "device": command.device,
        "again": command.again,
        "save_images": command.save_images,
        "tell": lambda line: say(line, command.table),
    }


def _attacks(command: Eval) -> list[Attack]:
    left_out = {name for name in ("pgd", "autoattack") if not getattr(command, name)}
    found = named_attacks(command.attacks, steps=command.pgd_steps, restarts=command.pgd_restarts)
    return [attack for attack in found if ATTACKS.name_of(attack) not in left_out]


def _steps(run: Path | None, words: Sequence[str]) -> tuple[list[NextStep], list[NextStep]]:
    """Return the commands that write the report again, and the commands to run next."""
    if run is None:
        return [NextStep("Evaluate it and write this page again.", written("eval", *words))], []
    further = NextStep("Evaluate it again, with another seed of the attacks.", written("eval", run, "--seed", "1"))
    return once_more(run, ["eval", *words], RunFolder(run).config().training.extended_from or ()), [further]
