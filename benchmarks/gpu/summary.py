"""A summary of the records of all stages on one page."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from benchmarks.gpu.published import TABLE_1
from benchmarks.gpu.stages import Row


class Rows(Protocol):
    """An object with named rows, such as a stage."""

    rows: dict[str, Row]


def of(stages: Mapping[str, Rows]) -> str:
    """Return the summary of the stages' records as Markdown; missing stages are left out."""
    sections = {"right": _right, "fast": _fast, "ladder": _ladder, "true": _true}
    parts = [section(stages[name].rows) for name, section in sections.items() if name in stages]
    return "\n\n".join(part for part in parts if part)


def _right(rows: Mapping[str, Row]) -> str:
    if not rows:
        return ""
    judged = {name: row for name, row in rows.items() if "failure" in row or "met" in row}
    missed = {name: row for name, row in judged.items() if "failure" in row or not row["met"]}
    lines = [f"## Right: {len(judged) - len(missed)} of {len(judged)} cases agree with the CPU", *_origin(rows), ""]
    lines += ["| compared | agree | largest error | allowed |", "|---|---:|---:|---:|"]
    groups: dict[str, list[str]] = defaultdict(list)
    for name, row in judged.items():
        before, _, after = name.partition(": ")
        kinds = {
            "killed and resumed": "after a kill, ",
            "replayed": "graphs and eager steps, ",
            "compiled": "compiled and eager steps, ",
        }
        kind = "a step's gradient, " if "cosine" in row else kinds.get(before.partition(",")[0], "")
        groups[f"{kind}{after}" if kind else f"hypergradients, {before}"].append(name)
    for group, names in groups.items():
        made = [rows[name] for name in names if "failure" not in rows[name]]
        errors = f"{max(row['error'] for row in made):.2g} | {max(row['goal'] for row in made):.2g}" if made else "–|–"
        lines.append(f"| {group} | {sum(name not in missed for name in names)} of {len(names)} | {errors} |")
    lines += ["", *(f"* {name}: {_why(row)}" for name, row in missed.items())]
    lines += [
        f"* {name}: cosine {row['cosine']:.4f} with the gradient in float64"
        for name, row in rows.items()
        if "cosine" in row and "met" not in row
    ]
    return "\n".join(lines).rstrip()


def _origin(rows: Mapping[str, Row]) -> list[str]:
    made = sorted(
        {f"{row['on']}, torch {row['torch']}, commit {row.get('commit', 'not noted')}" for row in rows.values()}
    )
    return ["", f"Made on: {'; '.join(made)}."]


def _why(row: Row) -> str:
    return str(row["failure"]) if "failure" in row else f"error {row['error']:.2g} (goal {row['goal']:.2g})"


def _fast(rows: Mapping[str, Row]) -> str:
    lines = []
    for name, row in rows.items():
        if "failure" in row:
            lines.append(f"* {name}: {row['failure']}")
        elif "methods" in row:
            cells = (
                f"{method['name']} {method['milliseconds']:.1f} ms, {method['images_per_second']:.0f} images/s, "
                f"{method['epoch_seconds']:.1f} s/epoch"
                + (f" and {method['validation_seconds']:.1f} s validation" if method.get("validation_seconds") else "")
                + (f", {method['over_by_hand']:.3f} of by hand" if method["over_by_hand"] else "")
                for method in row["methods"]
            )
            lines.append(f"* {name}: " + "; ".join(cells))
        elif "milliseconds" in row:
            # Older records have no title with several steps on one batch, and call these seconds those of an epoch.
            seconds = row.get("gradient_epoch_seconds", row.get("epoch_seconds"))
            lines.append(
                f"* {name}: gradient alone {row['milliseconds']:.1f} ms, {seconds:.2f} s an epoch without the "
                f"optimiser, off {row['apart']:.1g}"
            )
        elif "capturable" in row:
            held = ", ".join(row["obstacles"]) or "nothing found that a graph cannot hold"
            lines.append(f"* {name}: not timed without CUDA; {held}")
        else:
            lines += [
                f"* {name}: {goal['what']} {goal['found']} ({'met' if goal['met'] else 'MISSED'}, {goal['limit']})"
                for goal in row["goals"]
            ]
    return "\n".join(["## Fast", *_origin(rows), "", *lines]) if lines else ""


def _ladder(rows: Mapping[str, Row]) -> str:
    """Return for each method the cost of its rungs, and the device time of each kind of kernel."""
    if not rows:
        return ""
    groups: dict[str, dict[str, Row]] = defaultdict(dict)
    for name, row in rows.items():
        title, _, rung = name.rpartition(": ")
        groups[title][rung] = row
    lines = ["## Ladder", *_origin(rows)]
    for title, found in groups.items():
        timed = {rung: row for rung, row in found.items() if "milliseconds" in row}
        lines += ["", f"**{title}**", "", *_costs(timed)] if timed else []
        seen = {rung: row for rung, row in timed.items() if row["shares"]}
        lines += ["", *_families(seen)] if seen else []
        notes = [f"* {title}: {rung}: {_untimed(row)}" for rung, row in found.items() if rung not in timed]
        notes += [f"* {title}: {rung}: {row['unseen']}" for rung, row in timed.items() if "unseen" in row]
        lines += ["", *notes] if notes else []
    return "\n".join(lines)


def _untimed(row: Row) -> str:
    if "failure" in row:
        return str(row["failure"])
    return f"not timed, {row['reason']}; {', '.join(row['obstacles']) or 'nothing found that a graph cannot hold'}"


def _costs(timed: Mapping[str, Row]) -> list[str]:
    heads = ("rung", "ms", "images/s", "s/epoch", "faster than before", "than the first", "s to prepare", "peak MiB",
             "TFLOP/s", "of matmul")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for rung, row in timed.items():
        cells = [f"{row['milliseconds']:.2f}", f"{row['images_per_second']:.0f}", f"{row['epoch_seconds']:.2f}"]
        cells += [_or_dash(row["speedup"], "{:.2f}"), _or_dash(row["speedup_over_first"], "{:.2f}")]
        cells += [_or_dash(row["prepare_seconds"], "{:.1f}"), _or_dash(row["peak_mib"], "{:.0f}")]
        cells += [f"{row['flops_per_second'] / 1e12:.3g}", f"{100 * row['of_matrix_rate']:.1f} %"]
        lines.append(f"| {rung} | {' | '.join(cells)} |")
    return lines


def _families(seen: Mapping[str, Row]) -> list[str]:
    heads = list(next(iter(seen.values()))["shares"])
    lines = [f"| share of device time | device ms | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(heads)]
    for rung, row in seen.items():
        cells = [f"{row['kernel_milliseconds']:.2f}", *(f"{100 * row['shares'][head]:.1f} %" for head in heads)]
        lines.append(f"| {rung} | {' | '.join(cells)} |")
    return lines


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _true(rows: Mapping[str, Row]) -> str:
    if not rows:
        return ""
    groups: dict[str, list[Row]] = defaultdict(list)
    for name, row in rows.items():
        if "failure" not in row:
            groups[name.rpartition(", seed")[0]].append(row)
    heads = ("cell", "seeds", "SA", "published", "RA-PGD", "published", "RA-AA", "published", "train s/epoch",
             "PGD s", "AutoAttack s", "implicit share, first to last epoch")  # fmt: skip
    lines = ["## True", *_origin(rows), "", f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, found in groups.items():
        published = TABLE_1.get(name, (None, None, None))
        cells = [name, str(len(found))]
        for key, figure in zip(("sa", "ra_pgd", "ra_aa"), published, strict=True):
            # Records from before AutoAttack was run here have no such figure.
            measured = [100 * row[key] for row in found if row.get(key) is not None]
            cells += [_spread(measured), f"{figure[0]:.2f} ± {figure[1]:.2f}" if figure else "–"]
        cells += _seconds(found)
        lines.append(f"| {' | '.join(cells)} | {_shares(found)} |")
    counts = sorted({(row["n"], row["n_aa"]) for row in rows.values() if "n_aa" in row})
    lines += [f"\nPGD on {n} test images and AutoAttack on {few}; published: both on all 10,000." for n, few in counts]
    return "\n".join([*lines, *(f"* {name}: {row['failure']}" for name, row in rows.items() if "failure" in row)])


def _seconds(found: Sequence[Row]) -> list[str]:
    """Return the seconds of an epoch and of the attacks, from the runs that had the device to themselves if any had."""
    alone = [row for row in found if row.get("alone")]
    chosen, note = (alone, "") if alone else (found, " (shared)")
    # Records from before these seconds were kept have those of the whole training alone.
    epochs = [row.get("epoch_seconds", row["train_seconds"] / row["epochs"]) for row in chosen]
    attacks = (
        [row[kind] for row in chosen if row.get(kind) is not None] for kind in ("pgd_seconds", "autoattack_seconds")
    )
    return [f"{statistics.fmean(values):.1f}{note}" if values else "–" for values in (epochs, *attacks)]


def _shares(found: Sequence[Row]) -> str:
    """Return the share of the implicit gradient in the first, the middle and the last epoch, over the seeds."""
    epochs = min(len(row["metrics"]) for row in found)
    places = sorted({0, epochs // 2, epochs - 1})
    means = [statistics.fmean(row["metrics"][k]["implicit_share"] or 0.0 for row in found) for k in places]
    return ", ".join(f"{100 * mean:.2f}" for mean in means) + " %" if any(means) else "0"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
