"""Export a submission to RobustBench: weights with its names, the class of the network, and the accuracies as JSON."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from adv_train import evaluation, models
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.export.base import FORMS, Form, Logits
from adv_train.export.counterparts import Counterpart, counterpart
from adv_train.export.source import Source
from adv_train.files import make_folder, replace_file
from adv_train.values import format_fraction

#: Data sets of RobustBench's leaderboards that models can be trained on here, with the number of their test images.
_DATA: Final = {"cifar10": 10_000, "cifar100": 10_000}
_THREATS: Final = {"linf": "Linf", "l2": "L2"}
_FORWARD: Final = {
    "mu": """\
        self.register_buffer("mu", torch.zeros(3, 1, 1))
        self.register_buffer("sigma", torch.ones(3, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)
""",
    # Some versions of RobustBench's class do not have these in the state dict.
    "mean": """\
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))
""",
}


@FORMS.register("robustbench")
@dataclass(frozen=True)
class RobustBench(Form):
    """A folder with weights, class and model-info JSON for RobustBench; accuracies come from the run's evaluation.

    Attributes:
        model_id: Name of the model on RobustBench: name of the first author, year, first word of the title.
        title: Title of the paper.
        authors: Authors of the paper, separated by commas.
        venue: Venue and year of the paper.
        link: URL of the paper.
        footnote: Footnote on the leaderboard.
        additional_data: Training used more data than the training images of the data set.
    """

    suffix, tolerance = "", 0.0

    model_id: str | None = None
    title: str | None = None
    authors: str | None = None
    venue: str | None = None
    link: str | None = None
    footnote: str | None = None
    additional_data: bool = False

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Write the three files in RobustBench's layout."""
        name, (dataset, threat) = self._id(), _leaderboard(source)
        found = counterpart(source.model, source.about["classes"])
        record = _record(source, dataset)
        info = self._info(source, record, found, dataset)
        buffer = io.BytesIO()
        state = source.model.state_dict()
        torch.save({found.name(ours): value.detach().contiguous() for ours, value in state.items()}, buffer)
        for place, content in {
            f"models/{dataset}/{threat}/{name}.pt": buffer.getvalue(),
            f"model_info/{dataset}/{threat}/{name}.json": (json.dumps(info, indent=2) + "\n").encode(),
            f"model_zoo/{name}.py": _definition(name, found).encode(),
        }.items():
            make_folder((path / place).parent)
            replace_file(path / place, content)
        empty = [key for key in ("title", "authors", "venue", "link") if getattr(self, key) is None]
        told = (f"complete these fields in the JSON, or give them as flags: {', '.join(empty)}",) if empty else ()
        return (*told, *(f"warning of the evaluation: {warning}" for warning in record.warnings))

    def read(self, source: Source, path: Path) -> Logits:
        """Load the weights as `adv_train` loads the checkpoint of another code base.

        This checks the names and values of the weights, but not the written class: it derives from a class of
        RobustBench, so it cannot be built without that package, which this one does not depend on.
        """
        model = source.blank()
        (weights,) = path.glob("models/*/*/*.pt")
        models.load_weights(model, weights)
        return model

    def _id(self) -> str:
        if self.model_id is None or not re.fullmatch(r"[A-Za-z][\w-]*", self.model_id, re.ASCII):
            raise UserError(
                "The form robustbench needs --model-id AuthorYearWord of letters, digits, - and _ (Wong2020Fast), "
                f"but got {self.model_id!r}."
            )
        return self.model_id

    def _info(self, source: Source, record: Evaluation, found: Counterpart, dataset: str) -> dict[str, Any]:
        return {
            "link": self.link or "",
            "name": self.title or "",
            "authors": self.authors or "",
            "additional_data": self.additional_data,
            "number_forward_passes": 1,
            "dataset": dataset,
            "venue": self.venue or "",
            "architecture": found.title,
            "eps": str(format_fraction(record.eps)),
            "clean_acc": f"{100 * record.sa:.2f}",
            "reported": None,  # for an accuracy claimed in a paper; this one is measured
            "autoattack_acc": f"{100 * record.attacks['autoattack'].accuracy:.2f}",
            "footnote": self.footnote,
        }


def _leaderboard(source: Source) -> tuple[str, str]:
    if source.checkpoint is None:
        raise UserError("The form robustbench needs a run, because it reports the accuracies of its evaluation.")
    config = source.checkpoint.config
    if config.data.name not in _DATA:
        raise UserError(f"RobustBench has no leaderboard for {config.data.name}, only for {' and '.join(_DATA)}.")
    if config.threat.norm not in _THREATS:
        raise UserError(f"RobustBench has no leaderboard for {config.threat.norm}, only for {' and '.join(_THREATS)}.")
    return config.data.name, _THREATS[config.threat.norm]


def _record(source: Source, dataset: str) -> Evaluation:
    """Find the evaluation of exactly these weights with AutoAttack on all test images, under the threat of training."""
    assert source.checkpoint is not None and source.folder is not None
    threat, weights = source.checkpoint.config.threat, digest(source.model.state_dict())[:16]
    wanted = f"run `adv-train eval {source.folder}`, or the same with --checkpoint last"
    try:
        records = evaluation.read_all(source.folder)
    except UserError as error:
        if (source.folder / evaluation.RECORDS_FOLDER).exists():
            raise
        raise UserError(f"RobustBench needs measured accuracies, but the run is not evaluated: {wanted}.") from error
    fitting = [
        record
        for record in records
        if record.about.get("weights") == weights
        and record.threat.matches(threat)
        and "autoattack" in record.attacks
        and record.n == _DATA[dataset]
    ]
    if not fitting:
        raise UserError(
            f"No record evaluates these weights with AutoAttack on all {_DATA[dataset]:,} test images within "
            f"{threat.norm} {format_fraction(threat.eps)}: {wanted}."
        )
    # AutoAttack is random. If there are records of several seeds, report the lowest accuracy, not a favourable one.
    return min(fitting, key=lambda record: record.attacks["autoattack"].accuracy)


def _definition(name: str, found: Counterpart) -> str:
    imported = ", ".join(sorted(found.names))
    normalisation = _FORWARD[found.layers["normalise.mean"]]
    return f'''\
"""The network of {name}, for `robustbench/model_zoo`."""

import torch
{"from torch import nn" + chr(10) if "nn." in found.arguments else ""}
from {found.module} import {imported}


class {name.replace("-", "_")}({found.names[0]}):
    def __init__(self):
        super().__init__({found.arguments})
{normalisation}'''
