"""Judge a trained model: clean accuracy (SA) and robust accuracy under PGD-50-10 (RA-PGD) and AutoAttack (RA-AA).

examples:
  adv-train eval runs/a
  adv-train eval runs/a --checkpoint last --report
  adv-train eval runs/a --no-autoattack --limit 1000     (a quick look)
  adv-train eval runs/a --eps 16/255 --table latex
  adv-train eval --checkpoint-file weights.pt --model preact-resnet-18 --data cifar10 --eps 8/255
  adv-train eval --model my_package.nets:resnet --data cifar10 --eps 8/255

Each evaluation is a record of its own in RUN/evaluations/; RUN/eval.json lists them, and it and RUN/outcomes.npz (what
became of each test image) show the fullest one of the best checkpoint. A model of your own takes images in [0, 1] and
has its normalisation inside.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from adv_train import values
from adv_train.attacks import ATTACKS, PGD, Attack
from adv_train.cli.flags import add_progress_flags
from adv_train.errors import UserError
from adv_train.evaluate_run import evaluate_run, evaluate_weights, summarise, summarise_record
from adv_train.evaluation import Evaluation
from adv_train.loading import WHICH
from adv_train.report import FORMATS, NextStep, RunSummary, class_rows, results_table, write_report, write_table

_READERS = {
    "limit": values.whole(1),
    "pgd_steps": values.whole(1),
    "pgd_restarts": values.whole(1),
    "seed": values.whole(0),
    "batch_size": values.whole(1),
    "eps": values.number(0, 1),
    "checkpoint": values.one_of(WHICH),
    "table": values.one_of(FORMATS),
}
_SHOWN_CLASSES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "run_folder", metavar="RUN", type=Path, nargs="?", help="run folder, as given to `adv-train fit --out`"
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="best (on validation, the default) or last")
    parser.add_argument("--eps", metavar="BUDGET", help="radius of the attacks; by default that of training")
    parser.add_argument("--no-pgd", dest="pgd", action="store_false", help="leave out PGD")
    parser.add_argument("--no-autoattack", dest="autoattack", action="store_false", help="leave out AutoAttack")
    known = ", ".join(ATTACKS.names())
    parser.add_argument("--attacks", metavar="NAMES", default="pgd,autoattack", help=f"with commas between: {known}")
    parser.add_argument("--limit", metavar="N", help="judge only N test images, of all classes in proportion")
    parser.add_argument("--pgd-steps", metavar="N", default="50", help="steps of PGD (default: 50)")
    parser.add_argument("--pgd-restarts", metavar="N", default="10", help="random starts of PGD (default: 10)")
    parser.add_argument("--seed", metavar="N", default="0", help="of the attacks (default: 0)")
    parser.add_argument("--batch-size", metavar="N", default="512", help="images in a forward pass (default: 512)")
    parser.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data sets are, if no longer where they were")
    parser.add_argument("--table", metavar="FORMAT", default="markdown", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--report", action="store_true", help="also write report.html beside eval.json")
    foreign = parser.add_argument_group("a model that was not trained here, instead of RUN")
    foreign.add_argument("--checkpoint-file", metavar="FILE", type=Path, help="its weights, as torch.save writes them")
    foreign.add_argument("--model", metavar="NAME", help="a name of `adv-train list`, or package.module:factory")
    foreign.add_argument("--data", metavar="NAME", help="what it is judged on; for RUN, where its images are now")
    foreign.add_argument("--out", metavar="FOLDER", type=Path, help="where the record goes (default: runs/NAME-eval)")
    add_progress_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge, and print a table."""
    given = {name: getattr(arguments, name) for name in _READERS if getattr(arguments, name) is not None}
    found = {name: _READERS[name](value, name.replace("_", "-")) for name, value in given.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # The record has them, and they are shown with the figures.
        outcome, folder, summary = (_foreign if arguments.run_folder is None else _run)(arguments, found)
    shown = RunSummary(**{**vars(summary), "evaluation": outcome.summary()})
    print(results_table([shown], found["table"]))
    if found["table"] == "markdown":
        _print_classes(shown)
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    about = f"{outcome.n} test images, {outcome.about['checkpoint']}; written to {folder / 'eval.json'}"
    _say(about, found["table"])
    if arguments.report:
        report = folder / "report.html"
        again = [] if arguments.run_folder is None else [_again(folder)]
        title = f"{summary.name} on {outcome.about['data']}"
        write_report(report, [summary], title=title, next_steps=again)
        _say(f"The report is {report}", found["table"])
    return 0


def _run(arguments: argparse.Namespace, found: dict[str, Any]) -> tuple[Evaluation, Path, RunSummary]:
    for flag in ("checkpoint_file", "model", "out"):
        if getattr(arguments, flag) is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} is for a model that was not trained here: leave out RUN, or it."
            )
    folder: Path = arguments.run_folder
    outcome = evaluate_run(
        folder,
        which=found.get("checkpoint", "best"),
        eps=found.get("eps"),
        data_name=arguments.data,
        data_root=arguments.data_root,
        **_common(arguments, found),
    )
    return outcome, folder, summarise(folder)


def _foreign(arguments: argparse.Namespace, found: dict[str, Any]) -> tuple[Evaluation, Path, RunSummary]:
    needed = {"--model": arguments.model, "--data": arguments.data, "--eps": found.get("eps")}
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        raise UserError(
            f"Give the RUN folder to judge, or for a model that was not trained here also {', '.join(missing)} "
            "(`adv-train eval --help` has examples)."
        )
    if arguments.checkpoint is not None:
        raise UserError("--checkpoint chooses a checkpoint of RUN; a weights file is given by --checkpoint-file.")
    weights: Path | None = arguments.checkpoint_file
    if weights is None and ":" not in arguments.model:
        raise UserError(f"`{arguments.model}` has no trained weights of its own: give them by --checkpoint-file.")
    name = weights.stem if weights else arguments.model.replace(":", ".")
    folder: Path = arguments.out or Path("runs") / f"{name}-eval"
    outcome = evaluate_weights(
        arguments.model,
        arguments.data,
        folder,
        weights=weights,
        eps=found["eps"],
        data_root=arguments.data_root or "data",
        **_common(arguments, found),
    )
    return outcome, folder, summarise_record(outcome, name)


def _common(arguments: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "attacks": _attacks(arguments, found),
        "limit": found.get("limit"),
        "seed": found["seed"],
        "batch_size": found["batch_size"],
        "device": arguments.device,
        "progress": arguments.progress,
    }


def _attacks(arguments: argparse.Namespace, found: dict[str, Any]) -> list[Attack]:
    names = [name.strip() for name in arguments.attacks.split(",") if name.strip()]
    left_out = {name for name in ("pgd", "autoattack") if not getattr(arguments, name)}
    return [
        PGD(found["pgd_steps"], found["pgd_restarts"]) if name == "pgd" else ATTACKS.create(name)
        for name in names
        if name not in left_out
    ]


def _print_classes(summary: RunSummary) -> None:
    """Print the accuracies of each class; of many classes those that fare worst."""
    titles, rows = class_rows(summary)
    if not rows:
        return
    classes = summary.evaluation["per_class"]
    # The robust accuracy under the last attack, the strongest one, decides; clean accuracy where there was none.
    worst = sorted(range(len(rows)), key=lambda i: [*classes[i]["ra"].values(), classes[i]["sa"]][-2:][0] or 0.0)
    many = len(rows) > _SHOWN_CLASSES
    chosen = sorted(worst[:_SHOWN_CLASSES]) if many else range(len(rows))
    print(f"\n{write_table(titles, [rows[i] for i in chosen])}")
    if many:
        print(f"These are the {_SHOWN_CLASSES} of {len(rows)} classes that withstand least.")
    print()


def _again(folder: Path) -> NextStep:
    return NextStep("Judge it again, with other attack noise.", f"adv-train eval {folder} --seed 1")


def _say(text: str, form: str) -> None:
    """Print where people look; a table for a program or a paper has the output to itself."""
    print(text, file=sys.stdout if form == "markdown" else sys.stderr)
