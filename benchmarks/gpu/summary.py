"""What the records of all stages say, in one page."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

from benchmarks.gpu.stages import Row, Stage


def of(stages: Mapping[str, Stage]) -> str:
    """Return the summary of the stages' records as Markdown."""
    parts = [_right(stages["right"].rows), _fast(stages["fast"].rows), _true(stages["true"].rows)]
    return "\n\n".join(part for part in parts if part)


def _right(rows: Mapping[str, Row]) -> str:
    if not rows:
        return ""
    judged = {name: row for name, row in rows.items() if "failure" in row or "met" in row}
    missed = [f"* {name}: {_why(row)}" for name, row in judged.items() if "failure" in row or not row["met"]]
    agree = f"## Right: {len(judged) - len(missed)} of {len(judged)} cases agree with the CPU"
    rounded = [
        f"* {name}: cosine {row['cosine']:.4f} with the gradient in float64"
        for name, row in rows.items()
        if "cosine" in row and "met" not in row
    ]
    return "\n".join([agree, *missed, *rounded])


def _why(row: Row) -> str:
    return str(row["failure"]) if "failure" in row else f"error {row['error']:.2g} (goal {row['goal']:.2g})"


def _fast(rows: Mapping[str, Row]) -> str:
    lines = []
    for name, row in rows.items():
        if "failure" in row:
            lines.append(f"* {name}: {row['failure']}")
        elif "methods" in row:
            cells = (
                f"{method['name']} {method['milliseconds']:.1f} ms, {method['epoch_seconds']:.1f} s/epoch"
                + (f", {method['over_by_hand']:.3f} of by hand" if method["over_by_hand"] else "")
                for method in row["methods"]
            )
            lines.append(f"* {name}: " + "; ".join(cells))
        elif "milliseconds" in row:
            lines.append(
                f"* {name}: {row['milliseconds']:.1f} ms, {row['epoch_seconds']:.2f} s/epoch, off {row['apart']:.1g}"
            )
        else:
            lines += [
                f"* {name}: {goal['what']} {goal['found']} ({'met' if goal['met'] else 'MISSED'}, {goal['limit']})"
                for goal in row["goals"]
            ]
    return "\n".join(["## Fast", *lines]) if lines else ""


def _true(rows: Mapping[str, Row]) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
    failures = []
    for name, row in rows.items():
        if "failure" in row:
            failures.append(f"* {name}: {row['failure']}")
        else:
            groups[name.rpartition(", seed")[0]].append(row)
    if not rows:
        return ""
    lines = [
        "## True",
        "",
        "| cell | seeds | SA | RA-PGD | train s/epoch | implicit share |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in groups.items():
        share = _mean([line["implicit_share"] or 0.0 for row in found for line in row["metrics"]])
        pace = _mean([row["train_seconds"] / row["epochs"] for row in found])
        accuracies = " | ".join(_spread([row[key] for row in found]) for key in ("sa", "ra_pgd"))
        lines.append(f"| {name} | {len(found)} | {accuracies} | {pace:.1f} | {100 * share:.2f} % |")
    return "\n".join([*lines, *failures])


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _spread(values: list[float]) -> str:
    mean = 100 * statistics.fmean(values)
    return f"{mean:.2f} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
