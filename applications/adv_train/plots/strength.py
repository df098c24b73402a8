"""Robustness as a function of the eps of training: Figure 2 of Zhang et al. (ICML 2022)."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adv_train import evaluation
from adv_train.attacks import ATTACKS
from adv_train.errors import UserError
from adv_train.judged_weights import of_weights
from adv_train.plots.base import FIGURES, Drawing, Row
from adv_train.plots.lines import Judged, Points, line_names, mean_and_std, sharing
from adv_train.plots.runs import Run
from adv_train.plots.style import MARKERS, budget_axis, legend_below, line
from adv_train.threat import Threat
from adv_train.values import NotNegative, format_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@FIGURES.register("strength")
@dataclass(frozen=True, kw_only=True)
class StrengthOfTraining(Drawing[Points]):
    """Robust and clean accuracy of runs that were trained with different eps (Zhang et al., ICML 2022, Figure 2).

    Each method has one line. If there are several seeds with one method and eps, the line goes through their mean, and
    error bars show the sample standard deviation. The runs must have been evaluated (`adv-train eval`).

    Attributes:
        test_eps: Radius of the attack on all runs; by default the eps of training of each run.
        attack: Attack that measures the robust accuracy (see `adv-train list attacks`).
        checkpoint: Checkpoint of each run: the best on validation, or the last.
    """

    examples: ClassVar[str] = """\
examples:
  adv-train plot strength runs/fast-at-* runs/fast-bat-* --out figures
  adv-train plot strength runs/* --test-eps 8/255 --attack autoattack --checkpoint last"""

    test_eps: NotNegative | None = None
    attack: str = "pgd"
    checkpoint: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        ATTACKS.find(self.attack)  # Raises for an unknown name; the error for a missing record names a command with it.

    def measure(self, runs: Sequence[Run], progress: bool | None = False) -> Points:
        """Read the evaluations of the runs."""
        first = runs[0]
        for run in runs:
            ours, theirs = ((each.config.data.name, each.config.threat.norm) for each in (run, first))
            if ours != theirs:
                raise UserError(
                    f"`{run.folder.path}` was trained on {' in '.join(ours)} and `{first.folder.path}` on "
                    f"{' in '.join(theirs)}: compare runs on the same data and norm."
                )
        names = line_names(runs)
        points = [self._judged(run, name) for run, name in zip(runs, names, strict=True)]
        if len({self._effort(point) for point in points}) > 1:
            warnings.warn("The runs differ in their test images or attack settings: evaluate them alike.", stacklevel=2)
        return points

    def _effort(self, point: Judged) -> tuple[str, int, object]:
        """Return what must be equal for all runs: the settings of the attack, and number and digest of the images."""
        # Lengths that follow the radius differ if each run is evaluated at the eps of its training.
        free = _LENGTHS if self.test_eps is None else ()
        record = point.record
        settings = {key: value for key, value in record.attacks[self.attack].settings.items() if key not in free}
        return str(settings), record.n, record.about.get("images")

    def _judged(self, run: Run, name: str) -> Judged:
        threat = run.config.threat
        if self.test_eps is not None:
            threat = replace(threat, eps=self.test_eps)
        epoch, file = run.best_epoch, run.folder.best
        if self.checkpoint == "last":
            epoch, file = run.config.training.epochs, run.folder.last
        place = run.folder.path
        judged = any((place / name).exists() for name in (evaluation.EVAL_FILE, evaluation.RECORDS_FOLDER))
        found = [
            record
            for record in (evaluation.read_all(place) if judged else [])
            if record.threat.matches(threat)
            and self.attack in record.attacks
            # The file name does not count: an earlier record of best.pt may be one of other weights, and if the last
            # epoch is the best one, a record of best.pt is also one of last.pt.
            and record.about.get("epoch") == epoch
        ]
        found = of_weights(found, file)
        if not found:
            raise UserError(
                f"No record evaluates {self.checkpoint}.pt of `{place}` with {self.attack} at eps "
                f"{format_fraction(threat.eps)}: run `{self._command(run, threat)}`."
            )
        record = evaluation.headline(found)
        return Judged(run, name, record, record.attacks[self.attack].accuracy)

    def _command(self, run: Run, threat: Threat) -> str:
        words = ["adv-train", "eval", str(run.folder.path), "--eps", str(format_fraction(threat.eps))]
        words += ["--attacks", self.attack]
        if self.checkpoint == "last":
            words += ["--checkpoint", "last"]
        return shlex.join(words)

    def rows(self, numbers: Points) -> list[Row]:
        """Return a row for each run, with mean and standard deviation over the seeds with its line and eps."""
        return [
            {
                **point.run.about(),
                "line": point.line,
                "test_eps": point.record.eps,
                "attack": self.attack,
                "checkpoint": str(point.record.about.get("checkpoint", "")),
                "epoch": point.record.about.get("epoch"),
                "images": point.record.n,
                "sa": point.record.sa,
                "ra": point.ra,
                "seeds": len(same := sharing(numbers, point.line, point.eps)),
                **{f"{key}_{which}": value for key in _PANELS for which, value in mean_and_std(same, key).items()},
            }
            for point in numbers
        ]

    def draw(self, numbers: Points) -> Figure:
        """Draw robust accuracy beside clean accuracy."""
        from matplotlib.figure import Figure  # Not at the top: only drawing needs matplotlib.

        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        at = "the eps of training" if self.test_eps is None else f"ε = {format_fraction(self.test_eps)}"
        titles = {"ra": f"Robust accuracy under {_called(self.attack)} at {at.replace('eps', 'ε')}"}
        titles["sa"] = "Clean accuracy"
        names = list(dict.fromkeys(point.line for point in numbers))
        handles: list[Any] = []
        for place, key in enumerate(_PANELS, start=1):
            axes = figure.add_subplot(1, 2, place)
            handles = [_line(axes, numbers, name, index, key) for index, name in enumerate(names)]
            _frame(axes, numbers, highest=max(point.ra if key == "ra" else point.record.sa for point in numbers))
            axes.set_title(titles[key])
        legend_below(figure, handles, names)
        return figure


_PANELS = ("ra", "sa")
_LENGTHS = ("step", "radii")


def _called(attack: str) -> str:
    return {"pgd": "PGD", "autoattack": "AutoAttack"}.get(attack, attack)


def _line(axes: Axes, points: Points, name: str, index: int, key: str) -> Any:
    budgets = sorted({point.eps for point in points if point.line == name})
    found = [mean_and_std(sharing(points, name, eps), key) for eps in budgets]
    bars = [spread["std"] or 0.0 for spread in found]
    look: dict[str, Any] = {**line(index), "marker": MARKERS[index % len(MARKERS)], "capsize": 3, "elinewidth": 1.2}
    return axes.errorbar(budgets, [spread["mean"] for spread in found], yerr=bars if any(bars) else None, **look)


def _frame(axes: Axes, points: Points, highest: float) -> None:
    from matplotlib.ticker import PercentFormatter

    threat = points[0].run.config.threat
    budget_axis(axes, sorted({point.eps for point in points}))
    axes.set_xlabel(f"ε of training ({threat.norm}, images in [{threat.low:g}, {threat.high:g}])")
    axes.set_ylim(0, min(1.02, 1.2 * highest + 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylabel("accuracy on test images")
    axes.grid(axis="y")
