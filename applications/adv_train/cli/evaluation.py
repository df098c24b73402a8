"""Judge a trained model: clean accuracy (SA) and robust accuracy under PGD-50-10 (RA-PGD) and AutoAttack (RA-AA).

examples:
  adv-train eval runs/a
  adv-train eval runs/a --checkpoint last --report
  adv-train eval runs/a --no-autoattack --limit 1000     (a quick look)
  adv-train eval runs/a --eps 16/255 --table latex
  adv-train eval runs/a --eps 4/255,8/255,16/255         (a record each; the same command goes on where it stopped)
  adv-train eval runs/a --attacks "pgd, apgd, square(queries=1000), transfer(source=runs/b)"
  adv-train eval runs/a --attacks cascade --save-images runs/a/images.npz
  adv-train eval runs/a --norm l2 --eps 128/255
  torchrun --nproc-per-node 2 -m adv_train eval runs/a   (on two GPUs, each with half the images)
  adv-train eval --checkpoint-file weights.pt --model preact-resnet-18 --data cifar10 --eps 8/255
  adv-train eval --checkpoint-file trades.pt --model wrn-34-10 --normalisation none --data cifar10 --eps 8/255
  adv-train eval --model my_package.nets:resnet --data cifar10 --eps 8/255

Each evaluation is a record of its own in RUN/evaluations/; RUN/eval.json lists them, and it and RUN/outcomes.npz (what
became of each test image) show the fullest one of the best checkpoint. What is judged already is not judged again, and
attacks that were interrupted go on where they stopped (--again judges anew). Brackets in the table are 95 % Wilson
intervals, in percent: how far the choice of the test images moves a figure. A model of your own takes images in [0, 1]
and has its normalisation inside.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train.attacks import ATTACKS, Attack
from adv_train.cli.command_line import Progress, options
from adv_train.devices import find_device
from adv_train.errors import UserError
from adv_train.evaluate import named
from adv_train.evaluate_run import evaluate_run, evaluate_weights, summarise, summarise_record
from adv_train.evaluation import Evaluation, check_image_file
from adv_train.models import TORCHVISION
from adv_train.ranks import started
from adv_train.records import RunFolder
from adv_train.report import (
    NextStep,
    RunSummary,
    budget,
    class_rows,
    percent,
    results_table,
    write_report,
    write_table,
)
from adv_train.threat import Norm, Threat
from adv_train.values import Range
from adv_train.written import items

_SHOWN_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class Eval(Progress):
    """What to judge, by what.

    Attributes:
        run: Run folder, as given to `adv-train fit --out`.
        checkpoint: Of the run: best on validation (the default), or last.
        norm: Of the attacks: linf, l2 or l1; by default that of training, and linf for a model not trained here.
        eps: Radius of the attacks, or several as in 4/255,8/255; by default that of training.
        attacks: Names with commas between (see `adv-train list attacks`), with options as in "square(queries=1000)".
        pgd: Attack by PGD.
        autoattack: Attack by AutoAttack.
        limit: Judge only so many test images, of all classes in proportion.
        pgd_steps: Steps of PGD.
        pgd_restarts: Random starts of PGD.
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        again: Judge anew what is judged already.
        save_images: File NAME.npz for the attacks' images, rounded to 8 bits and judged once more after that; of
            several --eps each has NAME-epsX.npz.
        device: auto, cpu, cuda, cuda:1, mps.
        data_root: Where the data sets are, if no longer where they were.
        table: Form of the table.
        report: Also write report.html beside eval.json.
        checkpoint_file: Weights of a model that was not trained here, as torch.save writes them.
        model: What that model is: a name of `adv-train list`, with options as in "wrn-28-10(activation=silu)", or
            package.module:factory.
        normalisation: For weights without mean and standard deviation: those of the data, or none.
        data: What that model is judged on; for RUN, where its images are now (imagefolder:PATH).
        out: Where the record of that model goes; by default runs/NAME-eval.
    """

    run: Path | None = None
    checkpoint: Literal["best", "last"] | None = None
    norm: Norm | None = None
    eps: tuple[Annotated[float, Range(0)], ...] | None = None
    attacks: str = "pgd,autoattack"
    pgd: bool = True
    autoattack: bool = True
    limit: Annotated[int, Range(1)] | None = None
    pgd_steps: Annotated[int, Range(1)] = 50
    pgd_restarts: Annotated[int, Range(1)] = 10
    seed: Annotated[int, Range(0)] = 0
    batch_size: Annotated[int, Range(1)] = 512
    again: bool = False
    save_images: Path | None = None
    device: str = "auto"
    data_root: str | None = None
    table: Literal["markdown", "csv", "latex"] = "markdown"
    report: bool = False
    checkpoint_file: Path | None = None
    model: str | None = None
    normalisation: Literal["data", "none"] | None = None
    data: str | None = None
    out: Path | None = None


def read(words: Sequence[str]) -> Eval:
    """Read the command line."""
    return options(Eval, words, "adv-train eval", __doc__ or "", positional="run")


def run(words: Sequence[str]) -> int:
    """Judge, and print a table."""
    command = read(words)
    judged = []
    with started(find_device(command.device)) as ranks:
        for eps in _budgets(command):
            with warnings.catch_warnings():
                # The record has them, and they are shown with the figures.
                warnings.simplefilter("ignore", RuntimeWarning)
                one = replace(command, eps=None if eps is None else (eps,), save_images=_image_file(command, eps))
                outcome, folder, summary = _run(one, command.run) if command.run else _foreign(one)
            judged.append((outcome, RunSummary(**{**vars(summary), "evaluation": outcome.summary()})))
    if not ranks.first:
        return 0
    several = len(judged) > 1
    rows = [replace(shown, name=f"{shown.name}, {_eps(outcome)}") if several else shown for outcome, shown in judged]
    print(results_table(rows, command.table))
    for outcome, shown in judged:
        if command.table == "markdown":
            _print_classes(shown, f"At {_eps(outcome)}:" if several else "")
        for line in _told(outcome, folder, several):
            print(line, file=sys.stderr)
        _say(_about(outcome, folder), command.table)
    if command.save_images is not None:
        for outcome, _ in judged:
            _say(_rounding(outcome), command.table)
    if command.report:
        report = folder / "report.html"
        again = [_again(folder)] if command.run else []
        title = f"{summary.name} on {outcome.about['data']}"
        write_report(report, [summary], title=title, next_steps=again)
        _say(f"The report is {report}", command.table)
    return 0


def _budgets(command: Eval) -> list[float | None]:
    """Return each budget once, in the order given; None stands for that of training."""
    if command.eps is None:
        return [None]
    if not command.eps:
        raise UserError("--eps names no budget: give one or several, such as 4/255,8/255.")
    norm = command.norm or (RunFolder(command.run).config().threat.norm if command.run else "linf")
    for eps in command.eps:
        Threat(norm, eps)  # A budget that cannot be is told before the first is judged.
    return list(dict.fromkeys(command.eps))


def _image_file(command: Eval, eps: float | None) -> Path | None:
    """Return the file for the images of a budget."""
    path = command.save_images
    if path is None:
        return None
    check_image_file(path)
    several = command.eps is not None and len(set(command.eps)) > 1
    return path.with_name(f"{path.stem}-eps{eps:.4g}{path.suffix}") if several else path


def _eps(outcome: Evaluation) -> str:
    return f"ε = {outcome.eps:.4g}"


def _told(outcome: Evaluation, folder: Path, several: bool) -> list[str]:
    """Return a line for each warning of a record."""
    at = f" at {_eps(outcome)}" if several else ""
    return [f"warning{at}: {warning}" for warning in outcome.warnings]


def _about(outcome: Evaluation, folder: Path) -> str:
    """Say what was judged, and where the record is."""
    averaged = f" (averaged weights, {outcome.about['averaged']})" if "averaged" in outcome.about else ""
    about = f"{outcome.n} test images, {outcome.about['checkpoint']}{averaged}, {budget(outcome.summary())}"
    part = ""
    if outcome.of is not None and outcome.n < outcome.of:
        part = f"\nThe test set has {outcome.of} images; the intervals take the {outcome.n} for a random choice."
    return f"{about}; written to {folder / 'eval.json'}{part}"


def _rounding(outcome: Evaluation) -> str:
    """Say what rounding the images did to the verdicts."""
    told = [
        f"{name} {percent(found['ra'])} ({found['stay']} of {found['broken']} broken ones stay so, "
        f"{found['more']} more break)"
        for name, found in outcome.after_rounding().items()
    ]
    return f"Robust after rounding to 8 bits at {_eps(outcome)}: {', '.join(told) or 'no attack was run'}"


def _run(command: Eval, folder: Path) -> tuple[Evaluation, Path, RunSummary]:
    for flag in ("checkpoint_file", "model", "normalisation", "out"):
        if getattr(command, flag) is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} is for a model that was not trained here: leave out RUN, or it."
            )
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
    needed = {"--model": command.model, "--data": command.data, "--eps": command.eps}
    missing = [flag for flag, value in needed.items() if value is None]
    if command.model is None or command.data is None or command.eps is None:
        raise UserError(
            f"Give the RUN folder to judge, or for a model that was not trained here also {', '.join(missing)} "
            "(`adv-train eval --help` has examples)."
        )
    if command.checkpoint is not None:
        raise UserError("--checkpoint chooses a checkpoint of RUN; a weights file is given by --checkpoint-file.")
    weights = command.checkpoint_file
    if weights is None and (":" not in command.model or command.model.startswith(TORCHVISION)):
        raise UserError(f"`{command.model}` has no trained weights of its own: give them by --checkpoint-file.")
    name = weights.stem if weights else command.model.replace(":", ".")
    folder = command.out or Path("runs") / f"{name}-eval"
    outcome = evaluate_weights(
        command.model,
        command.data,
        folder,
        weights=weights,
        normalisation=command.normalisation,
        norm=command.norm or "linf",
        eps=command.eps[0],
        data_root=command.data_root or "data",
        **_common(command),
    )
    return outcome, folder, summarise_record(outcome, name)


def _common(command: Eval) -> dict[str, Any]:
    return {
        "attacks": _attacks(command),
        "limit": command.limit,
        "seed": command.seed,
        "batch_size": command.batch_size,
        "device": command.device,
        "again": command.again,
        "save_images": command.save_images,
        "tell": lambda line: _say(line, command.table),
        "progress": command.shown,
    }


def named_attacks(names: str, *, steps: int, restarts: int) -> list[Attack]:
    """Make the attacks of a list of names with options, PGD by default with so many steps and restarts.

    Raises:
        UserError: When a name is unknown, or an option is wrong.
    """
    made = []
    for item in items(names):
        name, options = ATTACKS.parsed(item, "attacks")
        defaults = {"steps": steps, "restarts": restarts} if name == "pgd" else {}
        made.append(ATTACKS.create(name, **{**defaults, **options}))
    named(made)
    return made


def _attacks(command: Eval) -> list[Attack]:
    left_out = {name for name in ("pgd", "autoattack") if not getattr(command, name)}
    found = named_attacks(command.attacks, steps=command.pgd_steps, restarts=command.pgd_restarts)
    return [attack for attack in found if ATTACKS.name_of(attack) not in left_out]


def _print_classes(summary: RunSummary, heading: str) -> None:
    """Print the accuracies of each class; of many classes those that fare worst."""
    titles, rows = class_rows(summary)
    if not rows:
        return
    classes = summary.evaluation["per_class"]
    # The robust accuracy under the last attack, the strongest one, decides; clean accuracy where there was none.
    worst = sorted(range(len(rows)), key=lambda i: [*classes[i]["ra"].values(), classes[i]["sa"]][-2:][0] or 0.0)
    many = len(rows) > _SHOWN_CLASSES
    chosen = sorted(worst[:_SHOWN_CLASSES]) if many else range(len(rows))
    if heading:
        print(f"\n{heading}")
    print(f"\n{write_table(titles, [rows[i] for i in chosen])}")
    if many:
        print(f"These are the {_SHOWN_CLASSES} of {len(rows)} classes that withstand least.")
    print()


def _again(folder: Path) -> NextStep:
    return NextStep("Judge it again, with other attack noise.", f"adv-train eval {folder} --seed 1")


def _say(text: str, form: str) -> None:
    """Print where people look; a table for a program or a paper has the output to itself."""
    print(text, file=sys.stdout if form == "markdown" else sys.stderr)
