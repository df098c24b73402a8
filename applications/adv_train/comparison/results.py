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
    return [_result(method, measures(plan), failed) for method in plan.methods]


@dataclass(frozen=True)
class _Finished:
    """The records of a finished run: its evaluations by checkpoint, and a line for each epoch."""

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
        return cls(found, cell.run.metrics(), cell.run.timing())


def _result(method: Planned, measured: list[str], failed: Mapping[str, str]) -> Result:
    finished: dict[int, _Finished] = {}
    reasons = {cell.name: failed[cell.name] for cell in method.cells.values() if cell.name in failed}
    for seed, cell in method.cells.items():
        try:
            if (found := _Finished.read(cell)) is not None:
                finished[seed] = found
        except UserError as error:
            reasons[cell.name] = str(error)
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
        _alarms(method, finished),
        reasons,
    )


def _alarms(method: Planned, finished: Mapping[int, _Finished]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for seed, run in finished.items():
        cell = method.cells[seed]
        if cell.config.method.attacks and (said := overfitting(run.metrics)) is not None:
            found[cell.name] = (said,)
        told = {f"{cell.name}, {name}.pt": record.warnings for name, record in run.evaluations.items()}
        found |= {name: warnings for name, warnings in told.items() if warnings}
    return found


def _accuracy(record: Evaluation, measure: str) -> float:
    return record.sa if measure == "sa" else record.attacks[measure].accuracy
