"""Groups: numbering, weights, coordinates outside every group, undecided groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import blo
from blo._layout import Layout
from tests.strategies import normal

GROUPS = torch.tensor([0, 1, 0, 2, -1, 1])


def fitted(weight: float | torch.Tensor, groups: torch.Tensor, z: torch.Tensor) -> blo.GroupLasso:
    return blo.GroupLasso(weight, groups).fit(Layout.of(z, batched=z.ndim > 1))


def test_groups_shrink_as_a_whole() -> None:
    z = normal(0, 6)
    weight = torch.tensor([0.3, 0.8, 10.0], dtype=torch.float64)
    expected = z.numpy().copy()
    for g in range(3):
        block = GROUPS.numpy() == g
        expected[block] *= max(0.0, 1 - 0.5 * float(weight[g]) / np.linalg.norm(expected[block]))
    near = fitted(weight, GROUPS, z).prox(z, 0.5)
    np.testing.assert_allclose(near, expected, rtol=1e-14, atol=1e-15)
    assert near[3] == 0 and near[4] == z[4]


def test_groups_of_one_are_the_lasso_and_one_group_is_the_norm() -> None:
    z = normal(1, 2, 4)
    lasso, group = blo.L1(0.4), fitted(0.4, torch.arange(4), z)
    torch.testing.assert_close(group.prox(z, 0.5), lasso.prox(z, 0.5), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(group.value(z), lasso.value(z), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(fitted(0.4, torch.zeros(4).long(), z).value(z), 0.4 * z.norm(dim=-1))


def test_each_lane_may_have_its_weights_and_its_groups() -> None:
    z = torch.ones(2, 4)
    groups = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
    assert fitted(torch.tensor([[1.0], [2.0]]), groups[0], z).value(z).tolist() == [2.0, 4.0]
    found = fitted(torch.tensor([1.0, 10.0]), groups, z).value(z)
    torch.testing.assert_close(found, torch.tensor([2.0, 1.0 + 10.0 * 3**0.5]))


def test_counts_are_of_coordinates_and_undecided_groups() -> None:
    z = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    # Group 1 (coordinates 1 and 5) has a gradient as long as its weight, group 2 a shorter one.
    gradient = torch.tensor([-1.0, 0.6, -1.0, 0.1, 0.0, 0.8], dtype=torch.float64)
    weight = torch.tensor([2**0.5, 1.0, 1.0], dtype=torch.float64)
    assert [int(c) for c in fitted(weight, GROUPS, z).tangent(z, gradient).counts()] == [3, 3, 1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.zeros(6), "must be an integer tensor"),
        (torch.tensor([0, 1, 2, 3, 0, 0]), "from 0 to 2"),
        (torch.tensor([0, 1, 2, -2, 0, 0]), "from 0 to 2"),
        (torch.zeros(5).long(), "must broadcast"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: torch.Tensor, message: str) -> None:
    with pytest.raises(blo.StructureError, match=rf"`GroupLasso\.groups` {message}|{message}"):
        fitted(torch.ones(3), groups, torch.ones(6))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(blo.StructureError, match=r"`GroupLasso\.weight` must have shape"):
        fitted(torch.ones(5, 3), GROUPS, torch.ones(6))
    with pytest.raises(ValueError, match=r"`GroupLasso\.weight` must be at least 0"):
        blo.GroupLasso(-1.0, GROUPS)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_norms_neither_vanish_nor_overflow(size: float) -> None:
    z = torch.tensor([3.0, 4.0], dtype=torch.float64) * size
    found = fitted(size, torch.zeros(2).long(), z).prox(z, 1.0)
    torch.testing.assert_close(found / size, torch.tensor([2.4, 3.2], dtype=torch.float64))


def test_a_weight_for_each_problem_is_not_read_as_one_for_each_group() -> None:
    z, groups = torch.zeros(4, 3), torch.tensor([0, 1, 1])
    with pytest.raises(blo.StructureError, match=r"one entry for each problem.*\(4, 1\)"):
        fitted(torch.ones(4), groups, z)
    fitted(torch.ones(4, 1), groups, z)
