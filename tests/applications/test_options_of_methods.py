"""An option that a method cannot take is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

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
