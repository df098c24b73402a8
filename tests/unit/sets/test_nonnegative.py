"""The slack of the non-negative orthant; the rest is tried in `test_base`."""

from __future__ import annotations

import torch

from blo import NonNegative


def test_the_slack_decides_what_is_free() -> None:
    z = torch.tensor([0.0, 0.05, 0.5])
    tangent = NonNegative(slack=0.1).tangent(z, torch.ones(3))
    assert tangent.project(torch.ones(3)).tolist() == [0.0, 0.0, 1.0]
