"""Judge a trained model: clean accuracy (SA) and robust accuracy under PGD-50-10 (RA-PGD) and AutoAttack (RA-AA).

examples:
  adv-train eval runs/a
  adv-train eval runs/a --checkpoint last --report
  adv-train eval runs/a --no-autoattack --limit 1000     (a quick look)

Writes RUN/eval.json and RUN/outcomes.npz (what became of each test image).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adv_train import values
from adv_train.attacks import PGDSettings
from adv_train.cli.flags import add_progress_flags
from adv_train.evaluate_run import evaluate_run, summarise
from adv_train.loading import WHICH
from adv_train.report import NextStep, markdown_table, write_report

_READERS = {
    "limit": values.whole(1),
    "pgd_steps": values.whole(1),
    "pgd_restarts": values.whole(1),
    "seed": values.whole(0),
    "batch_size": values.whole(1),
    "checkpoint": values.one_of(WHICH),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder, as given to `adv-train fit --out`")
    parser.add_argument("--checkpoint", metavar="NAME", default="best", help="best (on validation) or last")
    parser.add_argument("--no-pgd", dest="pgd", action="store_false", help="leave out PGD")
    parser.add_argument("--no-autoattack", dest="autoattack", action="store_false", help="leave out AutoAttack")
    parser.add_argument("--limit", metavar="N", help="judge only N test images, of all classes in proportion")
    parser.add_argument("--pgd-steps", metavar="N", default="50", help="steps of PGD (default: 50)")
    parser.add_argument("--pgd-restarts", metavar="N", default="10", help="random starts of PGD (default: 10)")
    parser.add_argument("--seed", metavar="N", default="0", help="of the attacks (default: 0)")
    parser.add_argument("--batch-size", metavar="N", default="512", help="images in a forward pass (default: 512)")
    parser.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data sets are, if no longer where they were")
    parser.add_argument("--report", action="store_true", help="also write RUN/report.html")
    add_progress_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge, and print a table."""
    given = {name: getattr(arguments, name) for name in _READERS if getattr(arguments, name) is not None}
    found = {name: _READERS[name](value, name.replace("_", "-")) for name, value in given.items()}
    folder: Path = arguments.run_folder
    outcome = evaluate_run(
        folder,
        which=found["checkpoint"],
        pgd=PGDSettings(found["pgd_steps"], found["pgd_restarts"]) if arguments.pgd else None,
        autoattack=arguments.autoattack,
        limit=found.get("limit"),
        seed=found["seed"],
        batch_size=found["batch_size"],
        device=arguments.device,
        data_root=arguments.data_root,
        progress=arguments.progress,
    )
    summary = summarise(folder)
    print(markdown_table([summary]))
    print(f"{outcome.n} test images, {found['checkpoint']}.pt; written to {folder / 'eval.json'}")
    if arguments.report:
        report = folder / "report.html"
        again = NextStep("Judge it again, with other attack noise.", f"adv-train eval {folder} --seed 1")
        write_report(report, [summary], title=f"{summary.name} on {summary.config['data']}", next_steps=[again])
        print(f"The report is {report}")
    return 0
