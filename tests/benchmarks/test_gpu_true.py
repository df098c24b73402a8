"""The stage that trains the cells of the tables: which cells there are, how they share the device, what is said."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import steps, summary, true
from benchmarks.gpu.stages import Clock, Stage

CPU = torch.device("cpu")


def test_cells_that_are_timed_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: set[str] = set()
    together: list[set[str]] = []

    class Process:
        """Ends when it has been asked three times."""

        returncode = 0

        def __init__(self, cell: true.Cell) -> None:
            self.cell, self.asked = cell, 0
            running.add(cell.name)
            together.append(set(running))

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked < 3:
                return None
            running.discard(self.cell.name)
            return 0

    first = list(true.cells())[:8]
    monkeypatch.setattr(true, "cells", lambda: iter(first))
    monkeypatch.setattr(true, "_begin", lambda cell, *_: Process(cell))
    monkeypatch.setattr(true, "_row", lambda cell, _, runs: {"alone": not true._shared(runs, cell).exists()})
    monkeypatch.setattr(true.time, "sleep", lambda _: None)
    stage = Stage(tmp_path / "gpu-true.json", CPU, quick=False)
    true.run(stage, CPU, Clock(60), data="digits", runs=tmp_path / "runs", workers=3, quick=False)
    alone = [cell.name for cell in first if cell.is_alone]
    assert alone == ["fast-at, 8/255, seed 0", "fast-bat, 8/255, seed 0", "fast-bat, shifted, 1 step, 8/255, seed 0"]
    assert all(len(names) == 1 for names in together if names & set(alone)) and max(map(len, together)) == 3
    assert {name for name, row in stage.rows.items() if row["alone"]} == set(alone) and len(stage.rows) == 8


def test_seconds_are_those_of_runs_that_were_alone() -> None:
    common = {"sa": 0.5, "ra_pgd": 0.4, "epochs": 2, "metrics": [{"implicit_share": 0.0}] * 2, "on": "a", "torch": "3"}
    alone = {**common, "alone": True, "train_seconds": 9.0, "epoch_seconds": 4.0, "pgd_seconds": 30.0}
    shared = {**common, "alone": False, "train_seconds": 80.0, "epoch_seconds": 40.0, "pgd_seconds": None}
    rows = {"gat, 8/255, seed 0": alone, "gat, 8/255, seed 1": shared, "liet, 8/255, seed 0": shared}
    rows |= {"nuat, 8/255, seed 0": {**common, "train_seconds": 14.0}}  # as an older record has it
    page = summary.of({"true": SimpleNamespace(rows=rows)})
    assert "| 4.0 | 30.0 | – |" in page and "| 40.0 (shared) | – | – |" in page and "| 7.0 (shared) | – | – |" in page


def test_a_cell_is_replayed_as_graphs_where_there_is_cuda(tmp_path: Path) -> None:
    for chosen in {each.title: each for each in true.cells()}.values():
        for device, expected in (("cpu", "off"), ("cuda", "graph")):
            words = true.words(chosen, torch.device(device), "cifar10", tmp_path, quick=False)
            flags = dict(itertools.pairwise(words))
            assert flags["--accelerate"] == expected
    titles = {each.title for each in true.cells()}
    assert {"fgsm-pgi", "liet", "nuat"} < titles
    # The titles are those of the measured steps, except for other numbers of steps.
    for title, method, options in true.METHODS:
        known = steps.METHODS.get(title)
        if known is not None:
            assert known[0] == method
            assert {key.replace("_", "-"): str(value).removesuffix(".0") for key, value in known[1].items()} == options
