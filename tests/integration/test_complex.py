"""Complex leaves of theta, against the gradient written out in NumPy by torch's convention dF/dRe + i dF/dIm."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo.errors import StructureError
from blo.stochastic import SOBA

N = 3
STEPS = blo.ProjectedGradient(step=0.2, max_steps=300, tol=None)
EXACT: dict[str, dict[str, Any]] = {
    "Implicit": {},
    "CG": {"gradient": blo.Implicit(blo.CG())},
    "forward products": {"gradient": blo.Implicit(products="forward")},
    "Unrolled": {"gradient": blo.Unrolled()},
    "the last steps": {"gradient": blo.Unrolled(last=200), "solver": STEPS},
    "checkpoints": {"gradient": blo.Unrolled(checkpoint=True), "solver": STEPS},
    "forward mode": {"gradient": blo.Unrolled(mode="forward"), "solver": STEPS},
}
CLOSE: dict[str, tuple[dict[str, Any], float]] = {
    "finite differences": ({"gradient": blo.Implicit(products="finite-difference")}, 1e-8),
    "ValueFunction": ({"gradient": blo.ValueFunction(1e4, two_sided=True)}, 1e-5),
}
ALL = {**{name: (options, 1e-9) for name, options in EXACT.items()}, **CLOSE}


class Problem:
    """`g = z M z / 2 - z b` with `b = r |c|^2 + Re(conj(w) c)`, and `f = |z|^2 / 2 + sum Im(c)`."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64, lanes: tuple[int, ...] = ()) -> None:
        draw = np.random.default_rng(seed)
        shape = (*lanes, N)
        root = draw.normal(size=(N, N))
        self.m = root @ root.T / N + np.eye(N)
        self.w = draw.normal(size=N) + 1j * draw.normal(size=N)
        self.r, self.c = draw.normal(size=shape), draw.normal(size=shape) + 1j * draw.normal(size=shape)
        tensors = (torch.from_numpy(array) for array in (self.m, self.w))
        self._m, self._w = (t.to(dtype.to_complex() if t.is_complex() else dtype) for t in tensors)
        theta = {"c": torch.from_numpy(self.c).to(dtype.to_complex()), "r": torch.from_numpy(self.r).to(dtype)}
        self.theta, self.z0 = theta, torch.zeros(shape, dtype=dtype)
        self.lower = blo.LowerProblem(self._lower, batched=bool(lanes))

    def _lower(self, theta: dict[str, Tensor], z: Tensor) -> Tensor:
        b = theta["r"] * theta["c"].abs().square() + (self._w.conj() * theta["c"]).real
        return 0.5 * (z * (z @ self._m)).sum(-1) - (z * b).sum(-1)

    def upper(self, theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return 0.5 * z.square().sum() + theta["c"].imag.sum()

    def truth(self) -> tuple[Any, Any]:
        """The gradients in c and r."""
        size = np.abs(self.c) ** 2
        z = np.linalg.solve(self.m, (self.r * size + (self.w.conj() * self.c).real).T).T
        q = np.linalg.solve(self.m, z.T).T
        return (2 * self.r * self.c + self.w) * q + 1j, size * q


def _agrees(found: dict[str, Tensor], problem: Problem, tol: float) -> None:
    for name, expected in zip(("c", "r"), problem.truth(), strict=True):
        assert found[name].dtype == problem.theta[name].dtype
        error = np.abs(found[name].detach().numpy() - expected).max()
        assert error <= tol * np.abs(expected).max(), (name, error)


@pytest.mark.parametrize("name", ALL)
def test_parts_add_up_to_the_gradient(name: str) -> None:
    options, tol = ALL[name]
    problem = Problem()
    out = blo.value_and_hypergrad(problem.upper, problem.lower, problem.theta, problem.z0, **options)
    _agrees(out.grad, problem, tol)
    assert torch.equal(out.direct["c"], torch.full((N,), 1j, dtype=torch.complex128))
    _agrees({name: out.direct[name] + out.implicit[name] for name in out.grad}, problem, tol)
    assert out.report.implicit_norm == pytest.approx(
        np.sqrt(sum(float(part.abs().square().sum()) for part in out.implicit.values()))
    )


@pytest.mark.parametrize("name", ALL)
def test_a_backward_pass_through_argmin_gives_it(name: str) -> None:
    options, tol = ALL[name]
    problem = Problem(1)
    theta = {name: leaf.clone().requires_grad_() for name, leaf in problem.theta.items()}
    problem.upper(theta, blo.argmin(problem.lower, theta, problem.z0, **options)).backward()
    _agrees({name: leaf.grad for name, leaf in theta.items() if leaf.grad is not None}, problem, tol)


@pytest.mark.parametrize("name", ["Implicit", "Unrolled", "checkpoints", "ValueFunction"])
def test_transforms_give_it(name: str) -> None:
    options, tol = ALL[name]
    problem = Problem(2, lanes=(4,))
    single = Problem(2).lower

    def value(theta: dict[str, Tensor], z0: Tensor) -> Tensor:
        return problem.upper(theta, blo.argmin(single, theta, z0, **options))

    _agrees(torch.func.vmap(torch.func.grad(value))(problem.theta, problem.z0), problem, tol)


@pytest.mark.parametrize("name", ["Implicit", "forward products"])
def test_batched_problems_give_it(name: str) -> None:
    problem = Problem(3, lanes=(4,))
    out = blo.value_and_hypergrad(problem.upper, problem.lower, problem.theta, problem.z0, **EXACT[name])
    _agrees(out.grad, problem, 1e-9)


def test_captured_complex_tensors_are_reached_by_transforms() -> None:
    problem = Problem(4)

    def value(c: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda r, z: problem.lower.objective({"c": c, "r": r}, z))
        z = blo.argmin(lower, problem.theta["r"], problem.z0)
        return problem.upper({"c": c}, z)

    found = torch.func.grad(value)(problem.theta["c"])
    assert np.abs(found.numpy() - problem.truth()[0]).max() <= 1e-9


def test_single_precision_gives_it_as_well() -> None:
    problem = Problem(5, torch.float32)
    out = blo.value_and_hypergrad(problem.upper, problem.lower, problem.theta, problem.z0)
    _agrees(out.grad, problem, 1e-4)


def test_a_conjugate_view_is_a_tensor_like_others() -> None:
    problem = Problem(6)
    theta = {**problem.theta, "c": problem.theta["c"].conj().resolve_conj().conj()}
    assert theta["c"].is_conj()
    _agrees(blo.value_and_hypergrad(problem.upper, problem.lower, theta, problem.z0).grad, problem, 1e-9)


@pytest.mark.parametrize("products", ["reverse", "forward", "finite-difference"])
def test_the_motion_of_a_set_counts(products: str) -> None:
    lower = blo.LowerProblem(
        lambda c, z: 0.5 * (z - 4 * c.abs() * torch.tensor([1.0, -1.0], dtype=torch.float64)).square().sum(),
        constraint=lambda c: blo.Box(-c.abs() / 2, c.abs() / 2),
    )
    c = torch.tensor(3.0 + 4.0j, dtype=torch.complex128)
    gradient = blo.Implicit(products=products)  # type: ignore[arg-type]
    out = blo.value_and_hypergrad(
        lambda c, z: 2 * z[0] - z[1], lower, c, torch.zeros(2, dtype=torch.float64), gradient=gradient
    )
    assert abs(out.grad - 1.5 * c / c.abs()) <= 1e-8  # F = 3 |c| / 2


def test_the_check_agrees_with_it_and_finds_a_fault() -> None:
    problem = Problem(7)
    assert blo.check_hypergrad(problem.upper, problem.lower, problem.theta, problem.z0).ok
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = blo.check_hypergrad(
            problem.upper, problem.lower, problem.theta, problem.z0, gradient=blo.HessianFree(7.0)
        )
    assert not wrong.ok


def test_a_fit_finds_the_complex_minimiser() -> None:
    target = torch.tensor([1.0 - 2.0j, 0.5 + 1.0j], dtype=torch.complex128)
    lower = blo.LowerProblem(lambda c, z: 0.5 * (z - torch.view_as_real(c - target)).square().sum())
    result = blo.fit(
        lambda c, z: z.square().sum(),
        lower,
        torch.zeros(2, dtype=torch.complex128),
        torch.zeros(2, 2, dtype=torch.float64),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.25),
        steps=60,
    )
    assert (result.theta - target).abs().max() <= 1e-9


def test_leaves_that_are_data_pass() -> None:
    c = torch.tensor([3.0 + 4.0j], dtype=torch.complex128)
    r = torch.ones(1, dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t["r"] * t["c"].abs()).square().sum())
    blo.argmin(lower, {"r": r, "c": c}, torch.zeros(1, dtype=torch.float64)).sum().backward()
    assert r.grad is not None
    assert abs(float(r.grad) - 5.0) <= 1e-10


Z = torch.zeros(2, dtype=torch.complex128)


@pytest.mark.parametrize(
    "call",
    [
        lambda lower: blo.argmin(lower, torch.zeros(2, requires_grad=True), Z),
        lambda lower: blo.value_and_hypergrad(lambda t, z: z.abs().sum(), lower, torch.zeros(2), Z),
        lambda lower: blo.check_hypergrad(lambda t, z: z.abs().sum(), lower, torch.zeros(2), Z),
        lambda lower: blo.fit(lambda t, z: z.abs().sum(), lower, torch.zeros(2), Z, optimizer=torch.optim.SGD, steps=1),
        lambda lower: SOBA(lower_step=0.1, upper_step=0.1).init(torch.zeros(2), Z),
        lambda lower: SOBA(lower_step=0.1, upper_step=0.1).init(Z, torch.zeros(2)),
    ],
)
def test_a_complex_z_is_refused_with_the_remedy(call: Any) -> None:
    with pytest.raises(StructureError, match=r"complex128.*view_as_real"):
        call(blo.LowerProblem(lambda t, z: (z - t).abs().square().sum()))


def test_complex_values_are_refused() -> None:
    theta, z0 = torch.ones(2, dtype=torch.complex128), torch.zeros(2, dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: (z - t.abs()).square().sum())
    with pytest.raises(StructureError, match=r"`upper` must return a real.*complex128"):
        blo.value_and_hypergrad(lambda t, z: (t * z).sum(), lower, theta, z0)
    crooked = blo.LowerProblem(lambda t, z: (z * t).square().sum())
    with pytest.raises(StructureError, match=r"`objective` must return a real.*complex128"):
        blo.argmin(crooked, theta.requires_grad_(), z0)
