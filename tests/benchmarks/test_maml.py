"""Sinusoid MAML of the benchmarks, at sizes of seconds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.against import maml
from benchmarks.registry import Setting

QUICK = Setting(rounds=1, quick=True)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_every_way_gives_the_gradient_written_by_hand_and_blo_compiles_into_one_graph() -> None:
    outcome = maml.run(QUICK)
    rows, goals = outcome.tables[0].rows, outcome.goals
    names = [str(row[0]) for row in rows]
    assert names[:-1] == ["by hand, vmap", "blo, vmap over argmin", "blo, batched", "by hand, vmap, compiled"]
    compiles = torch.__version__ >= (2, 11)  # the compiler of 2.7 loses the fields of dataclasses
    assert names[-1].partition(":")[::2] == ("blo, vmap over argmin, compiled", "") or not compiles
    # Each path has a goal of its own, so that a fast one does not hide a slow one.
    assert [goal.found for goal in goals[:2]] == [row[4] for row in rows[1:3]]
    assert all(isinstance(row[1], float) and row[1] <= 1e-12 for row in (rows if compiles else rows[:-1]))
