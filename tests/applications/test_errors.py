"""How an unknown name is reported."""

from __future__ import annotations

from adv_train.errors import UserError, unknown


def test_the_nearest_names_come_first_and_all_names_follow() -> None:
    error = unknown("method", "Fast-Bta", ["pgd-at", "fast-bat", "fast-at"])
    assert isinstance(error, UserError)
    text = str(error)
    assert text.startswith("Unknown method `Fast-Bta`. Did you mean `fast-bat`")
    assert text.endswith("Valid names: fast-at, fast-bat, pgd-at.")
    assert "\n" not in text


def test_nothing_is_suggested_when_nothing_is_near() -> None:
    assert str(unknown("model", "zzzz", ["small-cnn"])) == "Unknown model `zzzz`. Valid names: small-cnn."
    many = str(unknown("key", "zzzz", [f"key{number}" for number in range(40)]))
    assert many.count("key") == 31 and many.endswith(" and 10 more.")
