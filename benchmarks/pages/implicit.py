"""What the implicit gradient does, and an attack loss of its own: paired differences from records."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.report import accuracy_title
from adv_train.tables import write_table
from benchmarks.pages.cells import points, verdict
from benchmarks.pages.records import Compared


def implicit(found: Compared, pairs: Sequence[tuple[str, str]]) -> str:
    """Write how methods of a comparison differ, pair by pair.

    Args:
        found: The record.
        pairs: A method, and the one that it is compared with.
    """
    judge = found.judge
    header = ["method", "compared with", "verdict", accuracy_title(judge), "SA", "share", "epochs"]
    rows = []
    for name, other in pairs:
        if name not in found.entries or other not in found.entries:
            continue
        ours, theirs = found.entries[name], found.entries[other]
        gap, share = ours.over(theirs, judge), ours.implicit_share
        told = "–" if share is None else f"{100 * share:.2g} %"  # it spans 0.02 % to 16 %
        epochs = str(ours.epochs) if ours.epochs == theirs.epochs else f"{ours.epochs} and {theirs.epochs}"
        clean = points(ours.over(theirs, "sa"))
        rows.append([f"`{name}`", f"`{other}`", verdict(gap), points(gap), clean, told, epochs])
    if not rows:
        return "No pair of runs is finished."
    about = "Differences in percentage points, for `last.pt`, paired by seed."
    return f"**{found.title}.** {about}\n\n{write_table(header, rows)}"
