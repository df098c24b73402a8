"""The options of the methods: their help, and the refusal of what a method cannot take."""

from __future__ import annotations

from typing import Any

import pytest

from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.methods import METHODS


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("sora", "longest", 0.0),
        ("sora", "alignment", 1.5),
        ("sora", "alignment_rate", -0.1),
        ("zerograd", "quantile", 1.1),
        ("multigrad", "points", 0),
        ("aaer", "penalty", -1.0),
        ("aaer", "fall", float("nan")),
        ("aaer-rs", "variation", "much"),
        ("aaer-rs", "follow_fall", "perhaps"),
        ("aaer-rs", "width", 2.0),
        ("beta", "rivals", 0),
        ("beta", "attack_loss", "kl"),
        ("fast-bat", "implicit", "shift"),
        ("learned-n-fgsm", "width", 0.0),
        ("learned-n-fgsm", "knots", 0),
        ("learned-n-fgsm", "reach", 0.5),
        ("learned-n-fgsm", "held_out", 2.0),
        ("learned-n-fgsm", "products", "forward"),
    ],
)
def test_a_wrong_value_is_refused_by_name(method: str, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        METHODS.create(method, **{option: value})


def test_the_help_without_a_method_claims_no_default_of_a_single_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--step X step size, in the units of eps; details depend on the method" in text and "1.25 eps" not in text
    assert "--shortest X smallest step length; eps/2 by default. (atas)" in text
    assert "(all but free-at, standard)" in text and "(all but )" not in text
