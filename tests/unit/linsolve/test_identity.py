"""A multiple of the identity in place of the operator."""

from __future__ import annotations

import pytest
import torch

from blo.linsolve import Identity
from blo.operators import Dense


@pytest.mark.parametrize(("scale", "damping", "factor"), [(1.0, 0.0, 1.0), (3.0, 1.0, 0.25), (-1.0, 0.5, -2.0)])
def test_it_divides(scale: float, damping: float, factor: float) -> None:
    b = torch.randn(2, 3)
    found = Identity(scale, damping).solve(Dense(torch.full((3, 3), torch.nan)), b)
    torch.testing.assert_close(found.x, factor * b)
    assert found.converged(0.0).all()
    assert found.indefinite.tolist() == [factor < 0] * 2


def test_a_division_by_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale \+ damping != 0"):
        Identity(0.0)
