"""The lines of a figure of evaluated runs: the runs of each line, and their means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.methods import METHODS
from adv_train.plots.runs import Run
from adv_train.values import format_fraction


@dataclass(frozen=True, eq=False)
class Judged:
    """A run and the evaluation that the figure shows.

    Attributes:
        run: The run.
        line: Name of its line in the legend: the method, with those options in which two of its runs differ.
        record: Record of the evaluation.
        ra: Robust accuracy under the attack, a fraction.
    """

    run: Run
    line: str
    record: Evaluation
    ra: float

    @property
    def eps(self) -> float:
        """The eps of training."""
        return self.run.config.threat.eps


Points: TypeAlias = list[Judged]


def line_names(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run's line.

    Raises:
        UserError: If two runs with the same line and eps have the same seed, or differ in more than the seed.
    """
    names = [_called_by_what_differs(run, runs) for run in runs]
    seen: dict[tuple[str, float], Run] = {}
    seeds: set[tuple[str, float, int]] = set()
    for name, run in zip(names, runs, strict=True):
        config = run.config
        other = seen.setdefault((name, config.threat.eps), run)
        differences = config.changed({"seed": other.config.training.seed}).differences(other.config)
        if differences:
            raise UserError(
                f"`{run.folder.path}` and `{other.folder.path}` are both {name} at eps "
                f"{format_fraction(config.threat.eps)} and differ in {', '.join(differences)}: leave one of them out."
            )
        key = (name, config.threat.eps, config.training.seed)
        if key in seeds:
            raise UserError(f"`{run.folder.path}` has the seed, method and eps of another run: leave one of them out.")
        seeds.add(key)
    return names


def _called_by_what_differs(run: Run, runs: Sequence[Run]) -> str:
    """Return the method and those of its options in which runs with one eps differ, as in `fast-bat(ig_weight=0)`.

    An option that varies with eps only, such as the step size in the presets, does not split a line.
    """
    name = run.config.method_name
    mine = [other.config for other in runs if other.config.method_name == name]
    told = [
        f"{option}={_text(getattr(run.config.method, option))}"
        for option in METHODS.options(name)
        if any(
            one.threat.eps == two.threat.eps and getattr(one.method, option) != getattr(two.method, option)
            for one, two in combinations(mine, 2)
        )
    ]
    return f"{name}({', '.join(told)})" if told else name


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sharing(points: Points, name: str, eps: float) -> Points:
    """Return the runs of a line that were trained with one eps; they differ in the seed."""
    return [point for point in points if (point.line, point.eps) == (name, eps)]


def mean_and_std(points: Points, key: str) -> dict[str, Any]:
    """Return the mean of `ra` or `sa` and its sample standard deviation, which is None for one run."""
    values = [point.ra if key == "ra" else point.record.sa for point in points]
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}
