"""The pages that are made from records say what the records hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.pages import cascade, choose, compared, comparisons, implicit, reproduce
from benchmarks.pages.cells import verdict
from benchmarks.pages.records import Compared

RESULTS, SAME = Path(__file__).resolve().parents[2] / "results", "not significant"
NUMBERS = np.random.default_rng(0)
ROBUST = {"weak": 0.5, "strong": 0.7, "near": 0.699, "alone": 0.65}
SEEDS = 5


def accuracies(mean: float, seeds: int) -> list[dict[str, Any]]:
    return [
        {
            "checkpoint": checkpoint,
            "measure": measure,
            "by_seed": {str(seed): mean + shift + 0.01 * NUMBERS.standard_normal() for seed in range(seeds)},
        }
        for checkpoint in ("best", "last")
        for measure, shift in (("sa", 0.2), ("pgd", 0.02), ("autoattack", 0.0))
    ]


@pytest.fixture
def record(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    methods = [
        {
            "name": name,
            "epochs": 30 if name == "near" else 18,
            "forwards": 7.0,
            "implicit_share": 0.0123 if name == "strong" else None,
            "accuracies": accuracies(mean, 1 if name == "alone" else 0 if name == "none" else SEEDS),
            "config": {"model": {"name": "small-cnn"}},
            "alarms": {"weak-seed1": ["overfitted"], "weak-seed1, best.pt": ["x"]} if name == "weak" else {},
            "failed": {"weak-seed2": "NaN"} if name == "weak" else {},
        }
        for name, mean in (ROBUST | {"none": 0.0}).items()
    ]
    found = {
        "data": "imagefolder:data/digits",
        "threat": {"norm": "linf", "eps": 8 / 255},
        "images": 360,
        "cost": 7.0,
        "attacks": {"pgd": {"steps": 50, "restarts": 10}, "autoattack": {}},
        "methods": methods,
    }
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    return tmp_path, found


def values(found: dict[str, Any], name: str, measure: str, checkpoint: str = "last") -> np.ndarray[Any, Any]:
    (method,) = (each for each in found["methods"] if each["name"] == name)
    (entry,) = (e for e in method["accuracies"] if (e["measure"], e["checkpoint"]) == (measure, checkpoint))
    return np.array(list(entry["by_seed"].values()))


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_comparisons_are_listed_by_their_number(tmp_path: Path) -> None:
    for name in ("compare-a-16", "compare-a-4", "compare-a-8", "table-1"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in comparisons(tmp_path)] == ["compare-a-4", "compare-a-8", "compare-a-16"]


def test_methods_are_ranked_by_the_strongest_attack_with_paired_differences(
    record: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = record
    text = choose(compared(folder))
    table = cells(text)
    means = {name: values(found, name, "autoattack").mean() for name in ROBUST}
    ranked = sorted(ROBUST, key=lambda name: -means[name])
    assert [name for name in table if name.startswith("`")] == [f"`{name}`" for name in ranked]
    first = values(found, ranked[0], "autoattack")
    weak = values(found, "weak", "autoattack")
    assert table["`weak`"][2] == f"{100 * weak.mean():.1f} ± {100 * weak.std(ddof=1):.1f}"
    low, high = stats.ttest_rel(weak, first).confidence_interval(0.95)
    assert table["`weak`"][4] == f"{100 * (weak - first).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p < 0.001"
    assert table["`alone`"][2] == f"{100 * means['alone']:.1f}" and "Too few seeds for a test: `alone`" in text
    near = {"strong", "near"} - {ranked[0]}
    found_near = f"No significant difference from it (paired t-test, p >= 0.05): `{near.pop()}`."
    assert f"The most robust method is `{ranked[0]}`. {found_near}" in text
    assert text.startswith(
        "**digits, linf, eps 8/255, small-cnn, equal cost of 7 F, 5 seeds, 360 test images, PGD-50-10, AA.**"
    )
    assert table["`weak`"][-1] == "2" and table["`near`"][-1] == "0"


def test_a_pair_is_read_as_its_test_says(record: tuple[Path, dict[str, Any]]) -> None:
    folder, found = record
    text = implicit(compared(folder), [("strong", "weak"), ("weak", "strong"), ("near", "strong"), ("none", "weak")])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert [row[2] for row in rows[:2]] == ["better", "worse"] and len(rows) == 3
    gap = values(found, "near", "autoattack") - values(found, "strong", "autoattack")
    p = stats.ttest_1samp(gap, 0).pvalue
    assert rows[2][3].startswith(f"{100 * gap.mean():+.1f} [") and rows[2][3].endswith(f"p = {p:.3f}")
    assert rows[2][2] == ("not significant" if p >= 0.05 else "worse")
    assert rows[0][1] == "`weak`" and rows[0][5:] == ["1.2 %", "18"]
    assert rows[2][1] == "`strong`" and rows[2][5:] == ["–", "30 and 18"]
    assert implicit(compared(folder), [("none", "weak")]) == "No pair of runs is finished."


def table_record(**cell: Any) -> dict[str, Any]:
    measured = [
        {"checkpoint": c, "measure": "pgd", "n": 2, "mean": m, "std": 0.011} for c, m in (("best", 0.4), ("last", 0.3))
    ]
    config = {"data": {"name": "imagefolder:data/cifar10-jpeg"}, "training": {"epochs": 10}}
    return {
        "table": "table-1",
        "scale": "cpu",
        "versions": {"torch": "2.15.0", "machine": "Linux"},
        "cells": [{"name": "cifar10-8-fast-bat", "measured": measured, "config": config, **cell}],
    }


def test_a_reproduced_table_shows_commands_published_and_measured(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    attacks = {"pgd": {"steps": 50, "restarts": 1, "step": 0.01}, "pgd-targeted": {"steps": 3, "restarts": 1}}
    path.write_text(json.dumps({**table_record(training_images=5000, images=1000, attacks=attacks), "seeds": [0, 3]}))
    table = cells(text := reproduce("table-1", [path]))
    assert table["`adv-train table table-1`"][3:] == ["seeds, cpu", "RA-PGD best, cpu", "RA-PGD last, cpu"]
    row = table["`--only cifar10-8-fast-bat`"]
    assert row == ["79.97 ± 0.12", "48.83 ± 0.17", "45.19 ± 0.12", "2", "40.0 ± 1.1", "30.0 ± 1.1"]
    assert table["`--only cifar10-8-fast-at`"][3:] == ["–", "–", "–"]
    assert len(table) == 18 + 2 and f"Record `{path.as_posix()}`, torch 2.15.0, Linux" in text
    judged = "PGD-50-1 with steps of 0.01, pgd-targeted(targets=none, steps=3)"
    settings = f"cifar10-jpeg, 5000 training images, 1000 test images, {judged}, 10 epochs"
    assert f"Scale cpu: {settings}; 2 seeds planned." in text
    assert "cpu" not in reproduce("table-2", [path])


def test_an_older_record_of_a_table_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_record()))
    text = reproduce("table-1", [path])
    assert "Scale cpu: cifar10-jpeg, 10 epochs; attacks and number of test images not recorded." in text
    assert "30.0 ± 1.1" in text
    kept = RESULTS / "table-1-cpu" / "table.json"
    assert "Scale cpu: cifar10-jpeg, " in reproduce("table-1", [kept])


def test_a_reproduced_table_says_how_the_published_figures_differ() -> None:
    assert "\n\nThe published RA-PGD is PGD-50 with one start (PGD-50-1), over three seeds.\n\n" in reproduce(
        "benchmark-8", []
    )


def test_the_cascade_is_told_as_its_record_says(tmp_path: Path) -> None:
    def attack(robust: int, seconds: float, only: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        here = dict(zip(("robust_only_here", "broken_only_here"), only, strict=True))
        return {"robust": robust, "cpu_seconds": seconds, "image_passes": 2_520_000, "passes": 9, **here}

    entries = [
        {"trained_at": 0.1, "judged_at": 0.2, "images": 100}
        | {"attacks": {"autoattack": attack(20, 10.0), "apgd": attack(21, 4.0, (2, 1))}},
        {"trained_at": 0.1, "judged_at": 0.1, "images": 50}
        | {"attacks": {"autoattack": attack(40, 7.6), "apgd": attack(40, 3.8)}},
    ]
    path = tmp_path / "cascade.json"
    path.write_text(json.dumps({"format": 1, "entries": entries}))
    table = cells(text := cascade(path))
    assert list(table)[2:] == ["0.1 / 0.1", "0.1 / 0.2"]  # the most robust first
    assert table["0.1 / 0.1"] == ["80.00 %, 7.6 s, 2.52 M passes", "80.00 %, 3.8 s, 2.52 M passes"]
    assert table["0.1 / 0.2"][1] == "21.00 %, 4 s, 2.52 M passes"
    told = (
        "`apgd` has 2.00 to 2.50 times the speed of `autoattack`. Of 150 images it breaks 1 that `autoattack` does not"
    )
    assert f"{told} break, and leaves 2 that `autoattack` breaks." in text
    assert "`cascade`" in cascade()  # the record of the repository


def test_the_summary_on_the_implicit_gradient_holds_in_the_records() -> None:
    """docs/implicit-gradient.md says it in words, so a changed record must change the page."""
    records = {folder.name: compared(folder) for folder in comparisons(RESULTS)}
    assert {"compare-digits", "compare-digits-ig"} < set(records)

    def found(record: Compared, name: str, other: str) -> str:
        return verdict(record.entries[name].over(record.entries[other], record.judge))

    for record in records.values():
        share = record.entries["fast-bat"].implicit_share
        assert share is not None and share < 0.01, record.name
        assert found(record, "fast-bat", "pgd-at") != "better", record.name
    digits, same_epochs = records["compare-digits"], records["compare-digits-ig"]
    none = "fast-bat(ig_weight=0)"
    assert found(same_epochs, "fast-bat", none) == found(same_epochs, "fast-bat(ig_weight=-1)", none) == SAME
    assert found(same_epochs, "fast-bat(curvature=1)", none) == "worse"
    for curvature in ("1", "0.33"):
        assert found(same_epochs, f"fast-bat(ig_weight=-1, curvature={curvature})", none) == SAME
    for loss in ("margin", "kl", "dlr"):
        assert found(digits, f"fast-bat(attack_loss={loss})", "fast-bat") != "better"
