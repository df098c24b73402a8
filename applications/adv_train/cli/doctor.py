"""Look for the classic mistakes of evaluating robustness, in a model and in its records.

examples:
  adv-train doctor runs/a
  adv-train doctor runs/a --checkpoint last --eps 16/255
  adv-train doctor runs/a --only leak,subset
  adv-train doctor runs/a --skip smoothing --limit 500
  adv-train doctor --checkpoint-file weights.pt --model preact-resnet-18 --data cifar10 --eps 8/255
  adv-train doctor --model my_package.nets:resnet --data cifar10 --eps 8/255

One line a check: its verdict, what was measured, and the remedy; `adv-train list checks` says what each looks for.
RUN/doctor.json holds the same with all figures. `well` is no proof: the attacks of the doctor are short, and look at
--limit images. The exit status is 0 where nothing was found, 1 where something is ill or doubtful.
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
    """What to examine, for what.

    Attributes:
        eps: Radius of the attacks, as it was used; by default that of training.
        limit: Test images for the checks that call the model, of all classes in proportion.
        only: Checks to make, with commas between (see `adv-train list checks`); by default all.
        skip: Checks to leave out.
        table: Form of the table.
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
    """Examine, print a table and write it; 1 where an illness was found."""
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
