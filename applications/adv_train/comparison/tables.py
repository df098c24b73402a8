"""The tables of a comparison: accuracies with their spread, and differences to the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.comparison.plan import CHECKPOINTS
from adv_train.comparison.results import Result
from adv_train.comparison.statistics import Difference, Spread
from adv_train.report import Figure, Table, accuracy_title, number, percent
from adv_train.tables import Cell


def accuracies(found: Sequence[Result], measured: Sequence[str]) -> Table:
    """Make the table of the accuracies, with mean and standard deviation, and of the cost of each method.

    Args:
        found: The results of the methods.
        measured: Names of the accuracies of each checkpoint.
    """
    columns = [(checkpoint, measure) for measure in measured for checkpoint in CHECKPOINTS]
    header = ["method", "seeds", *(f"{title(measure)} {checkpoint}" for checkpoint, measure in columns)]
    rows = [
        [result.name, seeds(result), *(spread(result.spread(*column)) for column in columns), *_costs(result)]
        for result in found
    ]
    return Table([*header, "epochs", "F/batch", "s/epoch", "alarms"], rows)


def differences(found: Sequence[Result], measured: Sequence[str], baseline: Result) -> Table:
    """Make the table of the differences of every other method to the baseline, in percentage points, with p-values.

    Args:
        found: The results of the methods.
        measured: Names of the accuracies of each checkpoint.
        baseline: The result, one of `found`, that the others are compared with.
    """
    columns = [(checkpoint, measure) for measure in measured for checkpoint in CHECKPOINTS]
    header = ["method"]
    for checkpoint, measure in columns:
        header += [f"{title(measure)} {checkpoint}", "p"]
    rows: list[list[Cell]] = []
    for result in found:
        if result is baseline:
            continue
        row: list[Cell] = [result.name]
        for column in columns:
            difference = result.difference(baseline, *column)
            row += [_points(difference), Figure(difference.p, _p(difference.p))]
        rows.append(row)
    return Table(header, rows)


def tidy(found: Sequence[Result], measured: Sequence[str], baseline: Result) -> Table:
    """Make the table of both for programs: a row for each method, checkpoint and accuracy, and one number a cell."""
    header = ["method", "checkpoint", "accuracy", "seeds", "mean", "std", "difference", "low", "high", "p"]
    rows: list[list[Cell]] = []
    for result in found:
        for measure in measured:
            for checkpoint in CHECKPOINTS:
                over = result.spread(checkpoint, measure)
                gap = Difference(0, None) if result is baseline else result.difference(baseline, checkpoint, measure)
                numbers = [over.n, over.mean, over.std, gap.mean, gap.low, gap.high, gap.p]
                rows.append([result.name, checkpoint, title(measure), *map(plain, numbers), *_costs(result)])
    return Table([*header, "epochs", "F/batch", "s/epoch", "alarms"], rows)


def title(measure: str) -> str:
    """Return the title of the column of a measure."""
    return "SA" if measure == "sa" else accuracy_title(measure)


def seeds(result: Result) -> Figure:
    """Make the cell with the number of finished runs."""
    planned = len(result.planned.cells)
    return Figure(result.runs, str(planned) if result.runs == planned else f"{result.runs} of {planned}")


def _costs(result: Result) -> list[Cell]:
    epochs, forwards = result.planned.config.training.epochs, result.planned.forwards
    return [
        Figure(epochs, str(epochs)),
        Figure(forwards, number(forwards, 1)),
        Figure(result.seconds, number(result.seconds, 2)),
        Figure(result.doubtful, str(result.doubtful)),
    ]


def spread(found: Spread) -> Figure:
    """Make the cell of a mean with its standard deviation."""
    if found.mean is None or found.std is None:
        return Figure(found.mean, percent(found.mean))
    return Figure(found.mean, f"{100 * found.mean:.1f} ± {100 * found.std:.1f} %")


def _points(difference: Difference) -> Figure:
    if difference.mean is None:
        return Figure(None, "–")
    told = f"{100 * difference.mean:+.1f}"
    if difference.low is not None and difference.high is not None:
        told += f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return Figure(difference.mean, told)


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: float | None) -> Figure:
    """Make the cell of a number for programs, with six digits in text."""
    return Figure(value, "–" if value is None else f"{value:.6g}")
