"""The results of the finished runs of a comparison, method by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from adv_train.attacks import ATTACKS, PGD, Attack
from adv_train.comparison.cell import Cell
from adv_train.comparison.plan import CHECKPOINTS, Plan, Planned
from adv_train.comparison.statistics import Difference, Spread
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, overfitting


@dataclass(frozen=True)
class Result:
    """The results of a method.

    Attributes:
        planned: The method with its runs.
        accuracies: Fractions by checkpoint and measure (``sa``, or the name of an attack), and then by seed.
        seconds: Mean training time of an epoch in seconds, over the epochs of all finished runs; None if no run has
            finished.
        implicit_share: Norm of the implicit part of the gradient over the norm of the direct part, averaged over the
            same epochs; None for a method without an implicit part.
        alarms: Warnings about the results, by the name of the run, or by the names of the run and the checkpoint.
        failed: The reason of each failure, by the name of the run; also of runs whose records are damaged.
    """

    planned: Planned
    accuracies: Mapping[tuple[str, str], Mapping[int, float]]
    seconds: float | None
    implicit_share: float | None
    alarms: Mapping[str, tuple[str, ...]]
    failed: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.planned.name

    @property
    def runs(self) -> int:
        """Number of finished runs."""
        return len(self.accuracies["last", "sa"])

    @property
    def doubtful(self) -> int:
        """Number of runs that failed or raised an alarm."""
        return len({name.partition(",")[0] for name in self.alarms} | set(self.failed))

    def spread(self, checkpoint: str, measure: str) -> Spread:
        """Return the mean and the standard deviation of an accuracy over the seeds."""
        return Spread.of(list(self.accuracies[checkpoint, measure].values()))

    def difference(self, baseline: Result, checkpoint: str, measure: str) -> Difference:
        """Return the difference of an accuracy to that of the baseline, paired by seed."""
        key = (checkpoint, measure)
        return Difference.of(self.accuracies[key], baseline.accuracies[key])


def measures(plan: Plan) -> list[str]:
    """Return the names of the accuracies of each checkpoint: ``sa`` and the attacks."""
    return ["sa", *map(ATTACKS.name_of, plan.attacks)]


def judges(attacks: Sequence[Attack]) -> str:
    """Name attacks with their options, PGD with its steps and restarts as in `PGD-50-10`."""
    return ", ".join(_pgd(attack) if isinstance(attack, PGD) else ATTACKS.written(attack) for attack in attacks)


def _pgd(attack: PGD) -> str:
    step = "" if attack.step is None else f" with steps of {attack.step:.4g}"
    return f"PGD-{attack.steps}-{attack.restarts}{step}"


def results(plan: Plan, failed: Mapping[str, str]) -> list[Result]:
    """Read the results of the runs that have finished; a run whose records are damaged has failed.

    Args:
        plan: The comparison.
        failed: The reason of each failure, by the name of the run.
    """
    read = [_read(method, failed) for method in plan.methods]
    told = _other_images([run for finished, _ in read for run in finished.values()])
    return [
        _result(method, measures(plan), finished, reasons, told)
        for method, (finished, reasons) in zip(plan.methods, read, strict=True)
    ]


@dataclass(frozen=True)
class _Finished:
    """The records of a finished run: its name, its evaluations by checkpoint, and a line for each epoch."""

    name: str
    evaluations: Mapping[str, Evaluation]
    metrics: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, cell: Cell) -> _Finished | None:
        """Read the records of a run; None if it has not finished.

        Raises:
            UserError: If they are damaged.
        """
        found = {c: record for c, record in zip(CHECKPOINTS, cell.evaluations(), strict=True) if record is not None}
        if len(found) < len(CHECKPOINTS):
            return None
        return cls(cell.name, found, cell.run.metrics(), cell.run.timing())

    def records(self) -> dict[str, Evaluation]:
        """Return its evaluations, by the names of run and checkpoint."""
        return {f"{self.name}, {checkpoint}.pt": record for checkpoint, record in self.evaluations.items()}


def _read(method: Planned, failed: Mapping[str, str]) -> tuple[dict[int, _Finished], dict[str, str]]:
    """Read the finished runs of a method, by seed, and the reason of each failure, by the name of the run."""
    finished: dict[int, _Finished] = {}
    reasons = {cell.name: failed[cell.name] for cell in method.cells.values() if cell.name in failed}
    for seed, cell in method.cells.items():
        try:
            if (found := _Finished.read(cell)) is not None:
                finished[seed] = found
        except UserError as error:
            reasons[cell.name] = str(error)
    return finished, reasons


def _result(
    method: Planned,
    measured: list[str],
    finished: Mapping[int, _Finished],
    reasons: Mapping[str, str],
    told: Mapping[str, str],
) -> Result:
    """Sum up a method; `told` has further alarms, by the names of run and checkpoint."""
    runs = finished.values()
    shares = [line["implicit_share"] for run in runs for line in run.metrics if line.get("implicit_share")]
    seconds = [line["train_seconds"] for run in runs for line in run.timing]
    return Result(
        method,
        {
            (checkpoint, measure): {
                seed: _accuracy(run.evaluations[checkpoint], measure) for seed, run in finished.items()
            }
            for checkpoint in CHECKPOINTS
            for measure in measured
        },
        fmean(seconds) if seconds else None,
        fmean(shares) if shares else None,
        _alarms(method, finished, told),
        reasons,
    )


def _other_images(finished: Sequence[_Finished]) -> dict[str, str]:
    """Return an alarm for each record of other test images than those of the first run.

    The number of images is that of the plan in all of them. Records of the first format do not name their images.
    """
    records = [
        (run.name, name, record.about.get("images")) for run in finished for name, record in run.records().items()
    ]
    known = [each for each in records if each[2] is not None]
    return {
        name: f"It was evaluated on other test images than those of {known[0][0]}: the data have changed in between, "
        "so the accuracies cannot be compared."
        for _, name, images in known
        if images != known[0][2]
    }


def _alarms(method: Planned, finished: Mapping[int, _Finished], told: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for seed, run in finished.items():
        cell = method.cells[seed]
        if cell.config.method.attacks and (said := overfitting(run.metrics)) is not None:
            found[cell.name] = (said,)
        for name, record in run.records().items():
            if warnings := (*record.warnings, *([told[name]] if name in told else [])):
                found[name] = warnings
    return found


def _accuracy(record: Evaluation, measure: str) -> float:
    return record.sa if measure == "sa" else record.attacks[measure].accuracy
