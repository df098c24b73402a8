"""No constraint."""

from __future__ import annotations

import torch

from blo import Free


def test_nothing_is_held() -> None:
    z = torch.randn(2, 3)
    tangent = Free().tangent(z, z)
    assert torch.equal(Free().project(z), z) and torch.equal(tangent.project(z), z)
    assert tangent.curvature == 0.0
    assert [c.tolist() for c in tangent.counts()] == [[3, 3], [0, 0], [0, 0]]
