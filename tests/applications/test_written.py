"""Names with options, as they are written in lists."""

from __future__ import annotations

import pytest

from adv_train.errors import UserError
from adv_train.objectives.base import OBJECTIVES
from adv_train.written import items, name_and_options


def test_commas_inside_brackets_do_not_separate() -> None:
    assert items("a, b(x=1, y=c(z=2,w=3)) ,,d(e=[1, 2])") == ["a", "b(x=1, y=c(z=2,w=3))", "d(e=[1, 2])"]
    assert items("") == [] == items(" , ")


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("pgd", "pgd", {}),
        (" pgd ( ) ", "pgd", {}),
        ("pgd(steps=20, restarts = 2)", "pgd", {"steps": "20", "restarts": "2"}),
        ("a b(loss=c(x=1, y=2), z=3)", "a b", {"loss": "c(x=1, y=2)", "z": "3"}),
    ],
)
def test_a_name_is_taken_from_its_options(text: str, name: str, options: dict[str, str]) -> None:
    assert name_and_options(text, "what") == (name, options)


@pytest.mark.parametrize("text", ["", "()", "a(", "a)", "a(b)", "a(=1)", "a(b=)", "a(b=1)c", "a=1", 3, None])
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(UserError, match="`what` must be a name, or a name with options such as"):
        name_and_options(text, "what")
    with pytest.raises(UserError):
        OBJECTIVES.read(text, "what")
