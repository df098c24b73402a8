"""Check a model and its records for the classic mistakes of evaluating robustness.

examples:
  adv-train doctor runs/a
  adv-train doctor runs/a --checkpoint last --eps 16/255
  adv-train doctor runs/a --only leak,subset
  adv-train doctor runs/a --skip smoothing --limit 500
  adv-train doctor --checkpoint-file weights.pt --model preact-resnet-18 --data cifar10 --eps 8/255
  adv-train doctor --model my_package.nets:resnet --data cifar10 --eps 8/255

The table has one line a check: its verdict, the measurement, and the remedy. The verdict is `well` (passed), `doubtful`
(uncertain: a figure may mislead), `ill` (failed: a figure is wrong) or `not checked` (the check does not apply).
`adv-train list checks` describes the checks. RUN/doctor.json holds the table and all figures. `well` does not prove
robustness: the doctor's attacks are short and use only --limit images. The exit status is 1 if a check is `ill` or
`doubtful`, and 0 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adv_train.attacks.judging import Judging
from adv_train.cli.command_line import options
from adv_train.cli.judged_model import JudgedModel, check_run_alone, foreign
from adv_train.doctor import LIMIT, Patient, chosen, examine, patient_of_run, patient_of_weights
from adv_train.files import make_folder
from adv_train.values import Range
from adv_train.written import items


@dataclass(frozen=True, kw_only=True)
class Doctor(JudgedModel):
    """The model to examine, and the checks to run.

    Attributes:
        eps: Radius of the attacks; by default the radius of training. A model not trained here needs it.
        limit: Number of test images for the checks that call the model; each class keeps its proportion.
        only: Checks to run, separated by commas (see `adv-train list checks`); by default all.
        skip: Checks to leave out, separated by commas.
        table: Format of the table.
    """

    eps: Annotated[float, Range(0)] | None = None
    limit: Annotated[int, Range(1)] | None = LIMIT
    only: str | None = None
    skip: str | None = None
    table: Literal["markdown", "csv", "latex"] = "markdown"


def read(words: Sequence[str]) -> Doctor:
    """Read the command line."""
    return options(Doctor, words, "adv-train doctor", __doc__ or "", positional="run")


def run(words: Sequence[str]) -> int:
    """Examine the model, print the table and write it; return 1 if a check found something."""
    command = read(words)
    names = chosen(items(command.only or ""), items(command.skip or ""))
    patient, folder = _of_run(command, command.run) if command.run else _of_weights(command)
    found = examine(patient, names, progress=command.shown)
    make_folder(folder)
    path = found.write(folder)
    print(found.table(command.table))
    left = sum(finding.verdict == "not checked" for finding in found.findings.values())
    told = f"{len(found.illnesses)} of {len(names)} checks found something, {left} did not apply; written to {path}"
    print(told, file=sys.stdout if command.table == "markdown" else sys.stderr)
    return 0 if found.healthy else 1


def _of_run(command: Doctor, folder: Path) -> tuple[Patient, Path]:
    check_run_alone(command)
    patient = patient_of_run(
        folder,
        which=command.checkpoint or "best",
        norm=command.norm,
        eps=command.eps,
        limit=command.limit,
        judging=Judging.of(command.seed, command.batch_size),
        device=command.device,
        data_name=command.data,
        data_root=command.data_root,
    )
    return patient, folder


def _of_weights(command: Doctor) -> tuple[Patient, Path]:
    given = foreign(command, "doctor", command.eps)
    patient = patient_of_weights(
        given.model,
        given.data,
        given.folder,
        weights=given.weights,
        normalisation=command.normalisation,
        norm=command.norm or "linf",
        eps=command.eps or 0.0,
        limit=command.limit,
        judging=Judging.of(command.seed, command.batch_size),
        device=command.device,
        data_root=command.data_root or "data",
    )
    return patient, given.folder
