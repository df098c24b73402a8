"""The tables of measured and published figures: one for people, and one for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from adv_train.comparison import Result
from adv_train.comparison.plan import CHECKPOINTS
from adv_train.comparison.statistics import Spread
from adv_train.comparison.tables import plain, seeds, spread, title
from adv_train.report import Figure, Table, number
from adv_train.reproduction.published import Published
from adv_train.tables import Cell

Row = tuple[Result, Mapping[str, Published]]
"""The measured and the published figures of a cell."""


def wide(found: Sequence[Row], measured: Sequence[str]) -> Table:
    """Make the table for people: a row for each cell, with three columns for each accuracy.

    Args:
        found: The figures of the cells.
        measured: Names of the accuracies.
    """
    header = ["cell", "seeds"]
    for measure in measured:
        header += [f"{title(measure)} {column}" for column in (*CHECKPOINTS, "published")]
    rows = [[*_accuracies(*row, measured), *_costs(*row)] for row in found]
    return Table([*header, *_COSTS], rows)


def tidy(found: Sequence[Row], measured: Sequence[str]) -> Table:
    """Make the table for programs: a row for each cell, checkpoint and accuracy, and one number a cell.

    Accuracies and their deviations are fractions. A published figure is repeated for each checkpoint.
    """
    header = ["cell", "checkpoint", "accuracy", "seeds", "mean", "std", "published", "published std"]
    rows: list[list[Cell]] = []
    for result, published in found:
        for measure in measured:
            for checkpoint in CHECKPOINTS:
                over, figure = _spread(result, checkpoint, measure), published.get(measure)
                numbers = [over.n, over.mean, over.std, *_fractions(figure)]
                doubtful = "" if figure is None else str(figure.doubtful).lower()
                row: list[Cell] = [result.name, checkpoint, title(measure), *map(plain, numbers), doubtful]
                rows.append([*row, *_costs(result, published)])
    return Table([*header, "published doubtful", *_COSTS], rows)


_COSTS = ("s/epoch", "s/epoch published", "F/batch", "alarms")


def _costs(result: Result, published: Mapping[str, Published]) -> list[Cell]:
    seconds = published.get("seconds")
    return [
        Figure(result.seconds, number(result.seconds, 2)),
        Figure(None, "–") if seconds is None else Figure(seconds.mean, f"{seconds.mean:g}"),
        Figure(result.planned.forwards, number(result.planned.forwards, 1)),
        Figure(result.doubtful, str(result.doubtful)),
    ]


def _accuracies(result: Result, published: Mapping[str, Published], measured: Sequence[str]) -> Iterator[Cell]:
    yield result.name
    yield seeds(result)
    for measure in measured:
        for checkpoint in CHECKPOINTS:
            yield spread(_spread(result, checkpoint, measure))
        yield _percent(published.get(measure))


def _spread(result: Result, checkpoint: str, measure: str) -> Spread:
    """Return the spread over the seeds; without any seed if no attack of the plan measures this accuracy."""
    known = (checkpoint, measure) in result.accuracies
    return result.spread(checkpoint, measure) if known else Spread(0, None, None)


def _percent(figure: Published | None) -> Figure:
    if figure is None:
        return Figure(None, "–")
    told = f"{figure.mean:.2f}{'?' if figure.doubtful else ''}"
    return Figure(figure.mean / 100, f"{told} %" if figure.std is None else f"{told} ± {figure.std:.2f} %")


def _fractions(figure: Published | None) -> list[float | None]:
    # Rounded, because 41.87 / 100 is 0.41869999999999996.
    percents = (None, None) if figure is None else (figure.mean, figure.std)
    return [None if percent is None else round(percent / 100, 10) for percent in percents]
