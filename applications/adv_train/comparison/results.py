"""The results of the finished runs of a comparison, method by method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from adv_train.attacks import ATTACKS, PGD
from adv_train.comparison.plan import CHECKPOINTS, Plan, Planned
from adv_train.comparison.statistics import Difference, Spread
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
        failed: The reason of each failure, by the name of the run.
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


def judges(plan: Plan) -> str:
    """Name the attacks that evaluate every checkpoint."""
    told = [f"PGD-{a.steps}-{a.restarts}" if isinstance(a, PGD) else ATTACKS.name_of(a) for a in plan.attacks]
    return ", ".join(told)


def results(plan: Plan, failed: Mapping[str, str]) -> list[Result]:
    """Read the results of the runs that have finished.

    Args:
        plan: The comparison.
        failed: The reason of each failure, by the name of the run.
    """
    return [_result(method, measures(plan), failed) for method in plan.methods]


def _result(method: Planned, measured: list[str], failed: Mapping[str, str]) -> Result:
    finished: dict[int, dict[str, Evaluation]] = {}
    for seed, cell in method.cells.items():
        found = {c: record for c, record in zip(CHECKPOINTS, cell.evaluations(), strict=True) if record is not None}
        if len(found) == len(CHECKPOINTS):
            finished[seed] = found
    runs = [method.cells[seed].run for seed in finished]
    shares = [line["implicit_share"] for run in runs for line in run.metrics() if line.get("implicit_share")]
    seconds = [line["train_seconds"] for run in runs for line in run.timing()]
    return Result(
        method,
        {
            (checkpoint, measure): {seed: _accuracy(found[checkpoint], measure) for seed, found in finished.items()}
            for checkpoint in CHECKPOINTS
            for measure in measured
        },
        fmean(seconds) if seconds else None,
        fmean(shares) if shares else None,
        _alarms(method, finished),
        {cell.name: failed[cell.name] for cell in method.cells.values() if cell.name in failed},
    )


def _alarms(method: Planned, finished: Mapping[int, Mapping[str, Evaluation]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for seed, records in finished.items():
        cell = method.cells[seed]
        if cell.config.method.attacks and (said := overfitting(cell.run.metrics())) is not None:
            found[cell.name] = (said,)
        found |= {f"{cell.name}, {name}.pt": record.warnings for name, record in records.items() if record.warnings}
    return found


def _accuracy(record: Evaluation, measure: str) -> float:
    return record.sa if measure == "sa" else record.attacks[measure].accuracy
