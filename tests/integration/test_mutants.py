"""`tests/mutations/sample.py` draws and runs a random sample of mutants as its options say."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from tests.mutations.draw import PACKAGES, Mutant, draw, places
from tests.mutations.runner import ROOT, Outcome
from tests.mutations.sample import record, sample, selected, summary, verdict

MODULE = '''"""A docstring == 1."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    LEFT = 1 + 2
__all__ = ["total"]


def total(values: "list[int]", *, low: int | None = None) -> float:
    """Return 1 + 1."""
    while not values:
        values = [0]
    if low == 7:
        raise ValueError("low == 7")
    print("a text of words", f"{low + 1}")
    note("é", values)  # <-
    return sum(values) / len(values)
'''


def test_the_same_seed_draws_the_same_and_another_seed_others() -> None:
    first = draw(ROOT, 30, 1)
    assert first == draw(ROOT, 30, 1) and len(set(first)) == 30
    assert first[:10] == draw(ROOT, 10, 1)
    assert len(set(first) & set(draw(ROOT, 30, 2))) < 5


@pytest.mark.parametrize("part", list(PACKAGES))
def test_only_the_part_that_was_asked_for_is_drawn(part: str) -> None:
    assert all(mutant.path.startswith(f"{PACKAGES[part]}/") for mutant in draw(ROOT, 30, 1, [part]))


def test_every_mutant_parses_and_differs_in_one_place() -> None:
    for mutant in draw(ROOT, 120, 3):
        text = (ROOT / mutant.path).read_text(encoding="utf-8")
        other = mutant.applied(text)
        assert ast.dump(ast.parse(other)) != ast.dump(ast.parse(text)), mutant
        assert other[: mutant.start] == text[: mutant.start]
        assert other[mutant.start + len(mutant.after) :] == text[mutant.end :]
        assert text.splitlines()[mutant.line - 1] in text[text.rfind("\n", 0, mutant.start) + 1 :]


def test_these_are_the_places_of_a_file() -> None:
    found = [(mutant.line, mutant.before, mutant.after) for mutant in places("blo/x.py", MODULE)]
    assert found == [
        (10, "not ", ""),
        (11, "0", "1"),
        (12, "low == 7", "(not (low == 7))"),
        (12, "==", "!="),
        (12, "7", "8"),
        (14, 'print("a text of words", f"{low + 1}")', "pass"),
        (15, 'note("é", values)', "pass"),
        (15, '"é"', "'éx'"),
        (15, '"é", values', 'values, "é"'),
        (16, "/", "*"),
    ]


def test_a_file_that_has_changed_since_is_an_error() -> None:
    with pytest.raises(LookupError, match="has changed"):
        Mutant("x.py", 1, 0, 1, "1", "2").applied("3")


def test_the_file_named_after_the_module_runs_first_and_slow_files_last() -> None:
    assert selected("blo/sets/_box.py")[0] == "tests/unit/sets/test_box.py"
    assert selected("blo/linsolve/_base.py")[0] == "tests/unit/linsolve/test_base.py"
    of_cifar = selected("applications/adv_train/data/cifar.py")
    assert of_cifar[0] == "tests/applications/test_cifar.py" and of_cifar[-1] == "tests/applications/test_resume.py"
    assert sorted(of_cifar) == sorted(
        file.relative_to(ROOT).as_posix() for file in (ROOT / "tests/applications").rglob("test_*.py")
    )
    assert not any("test_mutat" in file for file in selected("blo/tree.py"))


TOY = """
def inside(x):
    return 0 < x < 9


def size(x):
    while x > 9:
        x = x // 3
    return x
"""
TEST = """
import time, blo

def test_the_ends_are_outside():
    assert blo.inside(1) and not blo.inside(0)

def test_a_size_is_small():
    assert blo.size(12) == 4
"""


def test_a_planted_survivor_is_listed_and_a_planted_kill_is_not(tmp_path: Path) -> None:
    for folder in ("blo", "tests/unit"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "blo/__init__.py").write_text(TOY)
    (tmp_path / "tests/unit/test_toy.py").write_text(TEST)
    (tmp_path / "pyproject.toml").write_text("")
    every = places("blo/__init__.py", TOY)
    lower, upper = [mutant for mutant in every if mutant.before == "<"]
    (divided,) = [mutant for mutant in every if mutant.before == "//"]
    endless = dataclasses.replace(divided, after="*")
    said: list[str] = []
    results = sample([upper, lower, endless], root=tmp_path, limit=5, tell=said.append)
    assert [verdict(outcome) for _, outcome in results] == [
        "",
        "tests/unit/test_toy.py::test_the_ends_are_outside",
        "hang or crash",
    ]
    assert summary(results) == "blo/__init__.py:3\n  - <\n  + <=\nnoticed: 2 of 3 in blo"
    assert len(said) == 4 and sum("NOT NOTICED" in line for line in said) == 1
    rows = record(results, seed=1)["mutants"]
    assert [row["noticed_by"] is None for row in rows] == [True, False, False]
    assert rows[0]["line"] == 3 and (rows[0]["before"], rows[0]["after"]) == ("<", "<=")

    (tmp_path / "tests/unit/test_toy.py").write_text(TEST + "\ndef test_red():\n    assert False\n")
    with pytest.raises(RuntimeError, match="fail without a mutant"):
        sample([upper], root=tmp_path, tell=said.append)


@pytest.mark.parametrize(("code", "said"), [(0, ""), (2, "cannot be imported"), (70, "cannot be imported")])
def test_code_that_cannot_be_imported_is_noticed(code: int, said: str) -> None:
    assert verdict(Outcome(code, (), "", 1.0)) == said
