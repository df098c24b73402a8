"""Losses whose second derivatives torch has in reverse mode only, in forward mode, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blo
from blo.errors import StructureError
from tests.oracles import Array

pytestmark = pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(12, 4)), 2 * DRAW.normal(size=12)
SIGNS = np.sign(Y)
T, STEP, STEPS = 0.4, 0.1, 7


def _sigmoid(u: Array) -> Array:
    return 1 / (1 + np.exp(-u))


#: The loss in torch; its first and second derivative in the outputs, summed, in NumPy.
Case = tuple[Callable[[Tensor], Tensor], Callable[[Array], Array], Callable[[Array], Array]]
y, signs = torch.from_numpy(Y), torch.from_numpy(SIGNS)
N = len(Y)
LOSSES: dict[str, Case] = {
    "mse": (lambda o: F.mse_loss(o, y), lambda o: 2 * (o - Y) / N, lambda o: 2 * np.ones(N) / N),
    "MSELoss": (
        lambda o: nn.MSELoss(reduction="sum")(o, y),
        lambda o: 2 * (o - Y),
        lambda o: 2 * np.ones(N),
    ),
    "mse by an older argument": (
        lambda o: F.mse_loss(o, y, size_average=False),
        lambda o: 2 * (o - Y),
        lambda o: 2 * np.ones(N),
    ),
    "mse without a reduction": (
        lambda o: F.mse_loss(o, y, reduction="none").mean(),
        lambda o: 2 * (o - Y) / N,
        lambda o: 2 * np.ones(N) / N,
    ),
    "huber": (
        lambda o: F.huber_loss(o, y),
        lambda o: np.clip(o - Y, -1, 1) / N,
        lambda o: (np.abs(o - Y) < 1) / N,
    ),
    "HuberLoss": (
        lambda o: nn.HuberLoss(reduction="sum", delta=0.7)(o, y),
        lambda o: np.clip(o - Y, -0.7, 0.7),
        lambda o: 1.0 * (np.abs(o - Y) < 0.7),
    ),
    "soft margin": (
        lambda o: F.soft_margin_loss(o, signs),
        lambda o: -SIGNS * _sigmoid(-SIGNS * o) / N,
        lambda o: _sigmoid(o) * _sigmoid(-o) / N,
    ),
}


def _lower(loss: Callable[[Tensor], Tensor]) -> blo.LowerProblem:
    x = torch.from_numpy(X)
    return blo.LowerProblem(lambda t, z: loss(x @ z) + 0.5 * t * z.square().sum())


def _upper(t: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (z - 1).square().sum()


def _step(case: Case) -> float:
    return STEP / max(1.0, float(np.abs(case[2](X @ np.zeros(4))).max() * N))


def _unrolled(case: Case, t: float) -> float:
    """The derivative of the upper objective after some steps of gradient descent, carried along by hand."""
    z, dz, step = np.zeros(4), np.zeros(4), _step(case)
    for _ in range(STEPS):
        slope, curved = case[1](X @ z), case[2](X @ z)
        z, dz = z - step * (X.T @ slope + t * z), dz - step * (X.T @ (curved * (X @ dz)) + t * dz + z)
    return float((z - 1) @ dz)


def _options(case: Case, mode: Any) -> dict[str, Any]:
    solver = blo.ProjectedGradient(_step(case), max_steps=STEPS, tol=None)
    return {"solver": solver, "gradient": blo.Unrolled(mode=mode)}


THETA, Z0 = torch.tensor(T, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
def test_forward_products_give_the_implicit_gradient(name: str) -> None:
    loss, _, curvature = LOSSES[name]
    out = blo.value_and_hypergrad(
        _upper, _lower(loss), THETA, Z0, gradient=blo.Implicit(blo.Direct(), products="forward")
    )
    z = out.z.numpy()
    q = np.linalg.solve(X.T @ (curvature(X @ z)[:, None] * X) + T * np.eye(4), z - 1)
    assert float(out.grad) == pytest.approx(-q @ z, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_gives_the_gradient_of_the_steps(name: str) -> None:
    case = LOSSES[name]
    out = blo.value_and_hypergrad(_upper, _lower(case[0]), THETA, Z0, **_options(case, "forward"))
    assert float(out.grad) == pytest.approx(_unrolled(case, T), rel=1e-11)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_a_hessian_of_torch_goes_through_the_steps(name: str) -> None:
    case = LOSSES[name]
    found = torch.func.hessian(lambda t: _upper(t, blo.argmin(_lower(case[0]), t, Z0, **_options(case, "reverse"))))(
        THETA
    )
    ahead, behind = (_unrolled(case, T + h) for h in (1e-4, -1e-4))
    assert float(found) == pytest.approx((ahead - behind) / 2e-4, rel=1e-6)


def test_dual_numbers_go_through_the_steps() -> None:
    case, forward = LOSSES["mse"], torch.autograd.forward_ad
    with forward.dual_level():
        z = blo.argmin(
            _lower(case[0]),
            forward.make_dual(THETA.clone().requires_grad_(), torch.ones_like(THETA)),
            Z0,
            **_options(case, "reverse"),
        )
        found = forward.unpack_dual(_upper(THETA, z)).tangent.detach()
    assert float(found) == pytest.approx(_unrolled(case, T), rel=1e-11)


@pytest.mark.parametrize(
    "options",
    [{"gradient": blo.Implicit(products="forward")}, _options(LOSSES["mse"], "forward")],
)
def test_what_has_no_forward_mode_is_named_with_the_remedy(options: dict[str, Any]) -> None:
    points = torch.from_numpy(DRAW.normal(size=(2, 4)))
    lower = blo.LowerProblem(lambda t, z: torch.cdist(z[None], t * points).square().sum())
    with pytest.raises(StructureError, match=r"forward mode: .*_cdist_forward.*products='reverse'"):
        blo.value_and_hypergrad(_upper, lower, THETA, Z0, **options)
