"""The effects of the implicit gradient and of a separate attack loss: paired differences from records."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.report import accuracy_title
from adv_train.tables import write_table
from benchmarks.pages.cells import points, verdict
from benchmarks.pages.records import Compared


def implicit(found: Compared, pairs: Sequence[tuple[str, str]]) -> str:
    """Write the differences between pairs of methods of a comparison.

    Args:
        found: The record.
        pairs: Pairs of a method and the method that it is compared with.
    """
    judge = found.judge
    header = ["method", "compared with", "verdict", accuracy_title(judge), "SA", "share", "epochs"]
    rows = []
    for name, other in pairs:
        if name not in found.entries or other not in found.entries:
            continue
        ours, theirs = found.entries[name], found.entries[other]
        gap, share = ours.over(theirs, judge), ours.implicit_share
        told = "–" if share is None else f"{100 * share:.2g} %"  # shares range from 0.02 % to 16 %
        epochs = str(ours.epochs) if ours.epochs == theirs.epochs else f"{ours.epochs} and {theirs.epochs}"
        clean = points(ours.over(theirs, "sa"))
        rows.append([f"`{name}`", f"`{other}`", verdict(gap), points(gap), clean, told, epochs])
    if not rows:
        return "No pair of runs is finished."
    about = "Differences in percentage points, for `last.pt`, paired by seed."
    return f"**{found.title}.** {about}\n\n{write_table(header, rows)}"
