"""The races of pairs, at sizes of seconds: both calls of a pair give the same numbers, and a difference is noticed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.against import _pairs, choices, deq, small, solvers
from benchmarks.against._pairs import Pair, compare
from benchmarks.boxed import boxed
from benchmarks.measure import relative_error
from benchmarks.registry import Run, Setting

QUICK = Setting(rounds=1, quick=True)


@pytest.mark.parametrize(
    ("run", "pairs", "limits"),
    [
        (small.run, 4, [1.5, 1.3, 1.15, 1.05]),
        (deq.run, 1, [1.3]),
        (solvers.run, 3, [1.95]),
        (choices.auto, 4, [1.05, 2.0]),
        (choices.halfspaces, 2, [3.0]),
    ],
    ids=["small", "deq", "solvers", "auto", "halfspaces"],
)
def test_the_races_of_pairs_run_and_agree(run: Run, pairs: int, limits: list[float]) -> None:
    outcome = run(QUICK)
    rows = outcome.tables[0].rows
    assert len(rows) == pairs
    assert all(isinstance(row[2], float) and row[2] <= (1e-6 if "LBFGS" in str(row[0]) else 1e-8) for row in rows)
    assert [goal.limit for goal in outcome.goals] == limits
    assert {goal.found for goal in outcome.goals} <= {row[3] for row in rows}


def test_a_pair_with_different_results_is_not_raced() -> None:
    one = torch.ones(3, dtype=torch.float64)
    same, close, apart = (Pair("ones", lambda: one, lambda x=x: x) for x in (one, one + 1e-9, one + 1e-7))
    table, goals = compare("", [same, close], QUICK)
    assert [row[2] for row in table.rows] == [0.0, pytest.approx(1e-9, rel=1e-6)] and not goals
    with pytest.raises(RuntimeError, match=r"ones: blo and by hand differ by 1\.00e-07"):
        compare("", [apart], QUICK)
    with pytest.raises(RuntimeError, match="differ by nan"):
        compare("", [Pair("ones", lambda: one * torch.nan, lambda: one)], QUICK)


def test_a_row_shows_the_times_and_products_of_both_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, v = torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    monkeypatch.setattr(_pairs, "race", lambda calls, setting, floor: {"blo": _Took(6.0), "by hand": _Took(4.0)})
    pair = Pair("twice", lambda: matrix @ (matrix @ v), lambda: matrix @ v, "once", 1.25, (matrix,))
    table, (goal,) = compare("", [pair], QUICK)
    assert table.rows[0] == ["twice", "once", 0.0, 1.5, 6.0, 12.0, 2, 4.0, 8.0, 1]
    assert len(table.columns) == 10 and (goal.what, goal.found, goal.limit) == ("twice, over once", 1.5, 1.25)


def test_the_active_sets_by_hand_are_those_of_the_boxes() -> None:
    problem = boxed(QUICK, 6, 12)
    assert relative_error(solvers._active_set(problem), problem.z) <= 1e-12


class _Took:
    """The times of a contestant, in milliseconds."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds, self.wall_milliseconds = milliseconds, 2 * milliseconds
        self.seconds = [milliseconds / 1e3]
