"""Linear equations: dependent and contradicting rows, shapes; the rest is tried in `test_base`."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from blo import (
    Affine,
    DegenerateWarning,
    Halfspaces,
    InfeasibleError,
    LowerProblem,
    StructureError,
    value_and_hypergrad,
)
from blo._layout import Layout
from tests.strategies import normal


def test_dependent_rows_hold_what_they_span() -> None:
    rows, z = normal(0, 2, 5), normal(1, 5)
    mixing = normal(2, 4, 2)
    thin = Affine(rows, torch.ones(2, dtype=torch.float64))
    fat = Affine(mixing @ rows, mixing.sum(-1)).fit(Layout.of(z, batched=False))
    near = thin.project(z)
    torch.testing.assert_close(fat.project(z), near, rtol=1e-12, atol=1e-12)
    v = normal(3, 5)
    torch.testing.assert_close(fat.tangent(z, v).project(v), thin.tangent(z, v).project(v), rtol=1e-12, atol=1e-12)
    assert [int(c) for c in fat.tangent(z, v).counts()] == [3, 2, 0]


@pytest.mark.parametrize("apart", [True, False])
def test_redundant_equations_that_theta_moves_apart_are_reported(apart: bool) -> None:
    rows = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)

    def equations(theta: Tensor) -> Affine:
        return Affine(rows, torch.stack([theta, 2.0 * (theta.detach() if apart else theta)]))

    lower = LowerProblem(lambda theta, z: (z - 3.0).square().sum(), equations)
    theta = torch.tensor(1.0, dtype=torch.float64)
    with pytest.warns(DegenerateWarning, match="move apart") if apart else contextlib.nullcontext():
        out = value_and_hypergrad(lambda theta, z: z[0], lower, theta, torch.zeros(2, dtype=torch.float64))
    if not apart:
        torch.testing.assert_close(out.grad, torch.tensor(0.5, dtype=torch.float64))


def test_equations_hold_to_rounding_and_bind_every_direction_when_they_are_many() -> None:
    A, z = normal(0, 3, 3), normal(1, 3)
    near = Affine(A, A @ z).project(z + 10)
    torch.testing.assert_close(near, z, rtol=1e-12, atol=1e-12)
    assert [int(c) for c in Affine(A).tangent(z, z).counts()] == [0, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contradicting_equations_are_refused_and_repeated_ones_are_not(dtype: torch.dtype) -> None:
    rows = normal(0, 2, 4).to(dtype)
    twice = torch.cat([rows, 3 * rows])
    right = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=dtype)
    Affine(twice, right)
    Affine(torch.zeros(1, 4, dtype=dtype), 0.0)
    with pytest.raises(InfeasibleError, match="have no solution"):
        Affine(twice, right + torch.tensor([0.0, 0.0, 0.0, 1e-3], dtype=dtype))
    with pytest.raises(InfeasibleError, match="1 of 2 systems"):
        Affine(twice, torch.stack([right, right.flip(0)]))


def test_each_lane_may_have_its_equations() -> None:
    z = normal(0, 3, 4)
    A, b = normal(1, 3, 2, 4), normal(2, 3, 2)
    layout = Layout.of(z, batched=True)
    together = Affine(A, b).fit(layout).project(z)
    shared = Affine(A[0], b).fit(layout).project(z)
    for i in range(3):
        torch.testing.assert_close(together[i], Affine(A[i], b[i]).project(z[i]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(shared[i], Affine(A[0], b[i]).project(z[i]), rtol=1e-12, atol=1e-12)


def test_columns_follow_the_leaves_of_z() -> None:
    tree = {"b": torch.zeros(2, 1), "a": torch.zeros(1)}
    layout = Layout.of(tree, batched=False)
    A = torch.tensor([[1.0, 0.0, 0.0]])  # the first leaf in the tree's order
    near = layout.unravel(Affine(A, 5.0).fit(layout).project(layout.ravel(tree)))
    first = next(iter(near))
    assert near[first].flatten()[0] == 5.0 and sum(float(leaf.sum()) for leaf in near.values()) == 5.0


@pytest.mark.parametrize("kind", [Affine, Halfspaces])
@pytest.mark.parametrize(
    ("A", "b", "message"),
    [
        (torch.ones(2, 4), 0.0, r"A` must have shape \(k, 3\)"),
        (torch.ones(5, 2, 3), 0.0, r"A` must have shape \(k, 3\)"),
        (torch.ones(2, 3).long(), 0.0, "A` must be a floating point tensor"),
        (torch.ones(3), 0.0, "A` must be a floating point tensor"),
        (torch.ones(2, 3), torch.ones(3), "b` must have one entry for each of the 2 rows"),
        (torch.ones(2, 3), torch.ones(4, 2), "b` must have shape"),
    ],
)
def test_what_does_not_fit_is_named(kind: Any, A: torch.Tensor, b: torch.Tensor | float, message: str) -> None:
    with pytest.raises(StructureError, match=rf"`{kind.__name__}\.{message}"):
        kind(A, b, validate=False).fit(Layout.of(torch.ones(3), batched=False))
