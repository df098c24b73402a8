"""The share of the checks, at a size of seconds."""

from __future__ import annotations

import sys

from benchmarks.against import checks
from benchmarks.registry import Setting


def test_each_check_is_found_in_the_library_and_left_as_it_was() -> None:
    homes = [module for name, module in sys.modules.items() if name.partition(".")[0] == "blo"]
    before = [dict(vars(home)) for home in homes]
    found = checks.run(Setting(rounds=1, quick=True))
    *rows, total = found.tables[0].rows
    shares = [[float(share or 0.0) for share in row[1:]] for row in rows]
    assert len(shares) == 9 and all(0.0 < share < 1.0 for row in shares for share in row)
    assert [float(share or 0.0) for share in total[1:]] == [sum(column) for column in zip(*shares, strict=True)]
    assert found.goals[0].found == max(share for row in shares for share in row)
    assert [dict(vars(home)) for home in homes] == before
