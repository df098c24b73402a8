"""Which method to choose: the accuracy of methods at equal cost."""

from __future__ import annotations

from adv_train.report import accuracy_title
from adv_train.tables import write_table
from benchmarks.pages.cells import SIGNIFICANT, accuracy, points
from benchmarks.pages.records import Compared, Entry


def choose(found: Compared) -> str:
    """Write the table of a comparison, most robust first, and the methods not significantly different from the first.

    Args:
        found: The record.
    """
    judge = found.judge
    ranked = sorted(found.entries.values(), key=lambda entry: -(entry.spread(judge).mean or 0))
    if not ranked:
        return "No run is finished."
    measures = ["sa", *found.record["attacks"]]
    titles = {measure: "SA" if measure == "sa" else accuracy_title(measure) for measure in measures}
    header = [
        "method",
        *titles.values(),
        f"{titles[judge]}, best.pt",
        f"{titles[judge]}, difference from the first",
        "epochs",
        "F/batch",
        "alarms",
    ]
    rows = [
        [
            f"`{entry.name}`",
            *(accuracy(entry.spread(measure)) for measure in measures),
            accuracy(entry.spread(judge, "best")),
            "–" if entry is ranked[0] else points(entry.over(ranked[0], judge)),
            str(entry.epochs),
            f"{entry.forwards:.1f}",
            str(entry.doubtful),
        ]
        for entry in ranked
    ]
    return "\n\n".join(
        [f"**{found.title}.** In percent, for `last.pt`.", write_table(header, rows), _first(ranked, judge)]
    )


def _first(ranked: list[Entry], judge: str) -> str:
    first, *others = ranked
    differences = [(entry, entry.over(first, judge)) for entry in others]
    near = [f"`{entry.name}`" for entry, gap in differences if gap.p is not None and gap.p >= SIGNIFICANT]
    alone = [f"`{entry.name}`" for entry, gap in differences if gap.p is None]
    told = f"The most robust method is `{first.name}`. "
    told += f"No significant difference from it (paired t-test, p >= {SIGNIFICANT}): {', '.join(near)}." if near else ""
    told += f" Too few seeds for a test: {', '.join(alone)}." if alone else ""
    return told.strip()
