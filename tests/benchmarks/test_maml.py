"""Sinusoid MAML of the benchmarks, at sizes of seconds."""

from __future__ import annotations

import pytest

from benchmarks.against import maml
from benchmarks.registry import Setting

QUICK = Setting(rounds=1, quick=True)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_every_way_gives_the_gradient_written_by_hand_and_blo_compiles_into_one_graph() -> None:
    rows = maml.run(QUICK).tables[0].rows
    assert [row[0] for row in rows] == [
        "by hand, vmap",
        "blo, vmap over argmin",
        "blo, batched",
        "by hand, vmap, compiled",
        "blo, vmap over argmin, compiled",
    ]
    assert all(isinstance(row[1], float) and row[1] <= 1e-12 for row in rows)
