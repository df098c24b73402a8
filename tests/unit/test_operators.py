"""Operators against their matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from blo.operators import Dense, Diagonal, Hessian, Operator, Restricted, ScaledIdentity, Sum
from tests.strategies import SEEDS, SetCase, make_set_case, normal, set_cases, spd

LANES = [(), (3,), (2, 3)]


def matvec(matrix: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("...ij,...j->...i", matrix, v)


@pytest.mark.parametrize("lanes", LANES)
def test_each_operator_is_its_matrix(lanes: tuple[int, ...]) -> None:
    A, d, v = normal(0, *lanes, 4, 4), normal(1, *lanes, 4), normal(2, *lanes, 4)
    scale = normal(3, *lanes, 1)
    eye = torch.eye(4, dtype=torch.float64)
    cases: list[tuple[Operator, Tensor]] = [
        (ScaledIdentity(3.0), 3.0 * eye.expand(*lanes, 4, 4)),
        (ScaledIdentity(scale), scale[..., None] * eye),
        (Diagonal(d), torch.diag_embed(d)),
        (Dense(A), A),
        (Dense(A.reshape(-1, 4, 4)[0]), A.reshape(-1, 4, 4)[0].expand(*lanes, 4, 4)),
        (Sum(Dense(A), Diagonal(d)), A + torch.diag_embed(d)),
        (Hessian(lambda u: matvec(A, u)), A),
    ]
    for operator, matrix in cases:
        torch.testing.assert_close(operator.dense(v), matrix, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(operator(v), matvec(matrix, v), rtol=1e-14, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(set_cases(), SEEDS)
def test_the_restriction_is_the_projected_matrix_and_the_identity_beside_it(case: SetCase, seed: int) -> None:
    z = case.set.project(case.point)
    tangent = case.set.tangent(z, z - case.point)
    n = z.shape[-1]
    A = normal(seed, *case.lanes, n, n)
    eye = torch.eye(n, dtype=torch.float64)
    P = torch.stack([tangent.project(e.expand_as(z)) for e in eye], dim=-1)
    K = torch.diag_embed(torch.as_tensor(tangent.curvature) * torch.ones_like(z))
    restricted = Restricted(Dense(A), tangent)
    inner = P @ (A + K) @ P
    torch.testing.assert_close(restricted.dense(z), inner + eye - P, rtol=1e-11, atol=1e-11)
    # With nothing beside, products show none of it, and the assembled matrix has the size of what is inside.
    bare = Restricted(Dense(A), tangent, beside=0.0)
    torch.testing.assert_close(bare(z), matvec(inner, z), rtol=1e-11, atol=1e-11)
    rank = torch.linalg.matrix_norm(P, keepdim=True)
    size = torch.where(rank > 0.5, torch.linalg.matrix_norm(inner, keepdim=True) / rank, 1.0)
    truth = inner + size * (eye - P)
    torch.testing.assert_close(bare.dense(z), truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["box", "ball", "simplex", "product"])
def test_the_restriction_of_a_positive_operator_can_be_inverted(name: str) -> None:
    case = make_set_case(name, (), 4, seed=3)
    z = case.set.project(case.point)
    tangent = case.set.tangent(z, z - case.point)
    H = Dense(spd(0, (), z.shape[-1], 10.0), symmetric=True, positive=True)
    restricted = Restricted(H, tangent)
    values = torch.linalg.eigvalsh(restricted.dense(z))
    assert restricted.symmetric and restricted.positive and values.min() > 0.09
    b = tangent.project(normal(1, z.shape[-1]))
    q = torch.linalg.solve(restricted.dense(z), b)
    torch.testing.assert_close(tangent.project(q), q, rtol=0, atol=1e-12)


def test_properties_are_those_declared() -> None:
    plain, definite = Dense(torch.eye(2)), Dense(torch.eye(2), symmetric=True, positive=True)
    table = [
        (plain, False, False),
        (definite, True, True),
        (ScaledIdentity(2.0), True, True),
        (ScaledIdentity(-2.0), True, False),
        (ScaledIdentity(torch.tensor(2.0)), True, False),  # not known without looking
        (Diagonal(torch.ones(2)), True, False),
        (Diagonal(torch.ones(2), positive=True), True, True),
        (Hessian(lambda v: v), True, False),
        (Hessian(lambda v: v, positive=True), True, True),
        (Sum(definite, ScaledIdentity(1.0)), True, True),
        (Sum(definite, ScaledIdentity(-1.0)), True, False),
        (Sum(plain, definite), False, False),
    ]
    for operator, symmetric, positive in table:
        assert (operator.symmetric, operator.positive) == (symmetric, positive), operator
