"""Defects that peers ship are noticed by the tests of this project: see `tests/mutations`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.catalogue import MUTATIONS, Mutation, Patch
from tests.mutations.runner import Outcome, mutate, run_all


@pytest.fixture(scope="module")
def outcomes() -> tuple[Outcome, dict[str, Outcome]]:
    return run_all()


def test_the_tests_pass_without_a_mutation(outcomes: tuple[Outcome, dict[str, Outcome]]) -> None:
    assert outcomes[0].code == 0, outcomes[0].output


@pytest.mark.parametrize("name", [mutation.name for mutation in MUTATIONS])
def test_every_mutation_is_noticed(name: str, outcomes: tuple[Outcome, dict[str, Outcome]]) -> None:
    outcome = outcomes[1][name]
    assert outcome.killed, outcome.output


@pytest.mark.parametrize("text", ["nothing like it", "twice twice"])
def test_a_mutation_whose_text_has_gone_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.py").write_text(text, encoding="utf-8")
    with pytest.raises(LookupError, match="follow the code"):
        mutate(tmp_path, Mutation("x", (Patch("file.py", "twice", "once"),), ()))
