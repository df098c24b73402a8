"""Sinusoid MAML of the benchmarks, at sizes of seconds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.against import maml
from benchmarks.registry import Setting

QUICK = Setting(rounds=1, quick=True)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_every_way_gives_the_gradient_written_by_hand_and_blo_compiles_into_one_graph() -> None:
    rows = maml.run(QUICK).tables[0].rows
    names = [str(row[0]) for row in rows]
    assert names[:-1] == ["by hand, vmap", "blo, vmap over argmin", "blo, batched", "by hand, vmap, compiled"]
    compiles = torch.__version__ >= (2, 11)  # the compiler of 2.7 loses the fields of dataclasses
    assert names[-1].partition(":")[::2] == ("blo, vmap over argmin, compiled", "") or not compiles
    assert all(isinstance(row[1], float) and row[1] <= 1e-12 for row in (rows if compiles else rows[:-1]))
