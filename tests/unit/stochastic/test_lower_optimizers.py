"""Torch optimisers on the lower level: their own steps, a badly scaled problem, and states that go on bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import blo
from blo.stochastic import Algorithm, Power, run
from tests.oracles import Array
from tests.unit.stochastic import quadratic
from tests.unit.stochastic.quadratic import LOWER, UPPER, Quadratic, Source, lower_gradients, upper_gradients
from tests.unit.stochastic.test_state import assert_identical, sources, start

OBJECTIVES = quadratic.upper, quadratic.lower
BATCHES = Quadratic.draw(21).full()
MAKERS: dict[str, Callable[..., Algorithm]] = {
    "SOBA": lambda **lower: blo.SOBA(upper_step=0.05, **lower),
    "MASOBA": lambda **lower: blo.MASOBA(upper_step=0.05, mixing=0.3, **lower),
    "SABA": lambda **lower: blo.SABA(upper_step=0.05, upper_count=4, lower_count=6, **lower),
    "StocBiO": lambda **lower: blo.StocBiO(
        upper_step=0.05, inner_steps=2, products=2, **({"lower_step": Power(0.2, -0.5)} | lower)
    ),
    "AmIGO": lambda **lower: blo.AmIGO(upper_step=0.05, inner_steps=2, adjoint_steps=2, **lower),
    "F2SA": lambda **lower: blo.F2SA(upper_step=0.05, multiplier=Power(2.0, 0.3), inner_steps=2, **lower),
    "BOME": lambda **lower: blo.BOME(upper_step=0.05, inner_steps=2, **lower),
}
every = pytest.mark.parametrize("name", MAKERS)


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2)


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)


def lbfgs(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters)


def halved(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, 3, gamma=0.5)


def root(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda k: float((k + 1) ** -0.5))


@every
def test_plain_sgd_makes_the_plain_steps(name: str) -> None:
    make = MAKERS[name]
    found, truth = [
        run(made, made.init(*start()), *OBJECTIVES, steps=5, **sources(made, torch.Generator().manual_seed(2)))
        for made in (make(lower_optimizer=sgd, lower_scheduler=root), make(lower_step=Power(0.2, -0.5)))
    ]
    for key in ("theta", "z"):
        np.testing.assert_allclose(found[key], truth[key], rtol=1e-12, atol=1e-12)
    assert not torch.equal(found["z"], start()[1])


class _Adam:
    """Kingma and Ba, ICLR 2015, Algorithm 1."""

    def __init__(self, rate: float) -> None:
        self.rate, self.k, self.m, self.v = rate, 0, 0.0, 0.0

    def __call__(self, x: Array, g: Array) -> Array:
        self.k += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2  # type: ignore[assignment]
        m, v = self.m / (1 - 0.9**self.k), self.v / (1 - 0.999**self.k)
        return np.asarray(x - self.rate * m / (np.sqrt(v) + 1e-8))


def test_adam_moves_z_and_the_adjoint_by_its_own_steps() -> None:
    case = Quadratic.draw(4)
    rng = np.random.default_rng(7)
    theta, z, q = rng.normal(size=3), rng.normal(size=5), np.zeros(5)
    algorithm = blo.SOBA(upper_step=0.1, lower_optimizer=adam)
    state = algorithm.init(torch.as_tensor(theta), torch.as_tensor(z))
    up, low = Source(case, UPPER, 8), Source(case, LOWER, 9)
    of_z, of_q = _Adam(0.1), _Adam(0.1)
    for _ in range(6):
        state = algorithm.step(state, *OBJECTIVES, up, low)
        g, f = low.mean(), up.mean()
        (direct, v), slope = upper_gradients(f, theta, z), lower_gradients(g, theta, z)[1]
        theta, z, q = theta - 0.1 * (direct - g["B"].T @ q), of_z(z, slope), of_q(q, g["H"] @ q - v)
        for found, truth in ((state["theta"], theta), (state["z"], z), (state["memory"]["q"], q)):
            np.testing.assert_allclose(found, truth, rtol=1e-10, atol=1e-12)


def scaled() -> tuple[dict[str, Any], Array, Array]:
    """Return objectives whose lower curvatures are 1, 1e2 and 1e4, and theta and z at the bilevel optimum."""
    rng, H = np.random.default_rng(0), np.diag([1.0, 1e2, 1e4])
    B, c, d = np.sqrt(H) @ rng.normal(size=(3, 2)), np.sqrt(H) @ rng.normal(size=3), rng.normal(size=3)
    d = np.linalg.solve(np.sqrt(H), d)
    K, k = np.linalg.solve(H, B), np.linalg.solve(H, c)  # z* = K theta + k
    theta = np.linalg.solve(np.eye(2) + K.T @ K, K.T @ (d - k))
    tH, tB, tc, td = (torch.as_tensor(part) for part in (H, B, c, d))
    return (
        {
            "upper": lambda t, z, b: 0.5 * (z - td).square().sum() + 0.5 * t.square().sum(),
            "lower": lambda t, z, b: 0.5 * z @ tH @ z - z @ (tB @ t + tc),
        },
        theta,
        K @ theta + k,
    )


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda **lower: blo.AmIGO(upper_step=0.6, **lower), 80),
        (lambda **lower: blo.SOBA(upper_step=0.3, **lower), 400),
    ],
    ids=["AmIGO", "SOBA"],
)
def test_adam_solves_a_badly_scaled_problem_on_which_plain_steps_hardly_move(make: Any, steps: int) -> None:
    objectives, theta, z = scaled()
    zero = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def distance(algorithm: Algorithm) -> float:
        state = run(algorithm, algorithm.init(*zero), **objectives, steps=steps, on_failure="ignore")
        return float(max(np.abs(state["theta"].numpy() - theta).max(), np.abs(state["z"].numpy() - z).max()))

    fast = make(
        lower_optimizer=lambda p: torch.optim.Adam(p, lr=0.3, betas=(0.5, 0.99)),
        lower_scheduler=lambda o: lr_scheduler.ExponentialLR(o, 0.005 ** (1 / steps)),
    )
    assert distance(fast) < 1e-8
    assert distance(make(lower_step=1e-4)) > 0.3  # one over the largest curvature


@every
def test_a_saved_run_with_an_optimiser_continues_bit_for_bit(name: str) -> None:
    algorithm = MAKERS[name](lower_optimizer=adam, lower_scheduler=halved)
    batches = sources(algorithm, torch.Generator().manual_seed(3))
    half = run(algorithm, algorithm.init(*start()), *OBJECTIVES, steps=4, **batches)
    before = copy.deepcopy(half)
    generator = torch.Generator().manual_seed(8)
    whole = run(algorithm, half, *OBJECTIVES, steps=5, **sources(algorithm, generator))
    assert_identical(half, before)

    file = io.BytesIO()
    torch.save(half, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    rest = run(algorithm, loaded, *OBJECTIVES, steps=5, **sources(algorithm, generator.manual_seed(8)))
    assert_identical(rest, whole)
    kept = whole["memory"]["optimizers"]
    others = {"StocBiO": {"z"}, "BOME": {"z"}, "F2SA": {"z", "y"}}
    assert set(kept) == others.get(name, {"z", "q"})
    assert {float(one["optimizer"]["param_groups"][0]["lr"]) for one in kept.values()} == {0.1 * 0.5**3}
    inner = 1 if name in ("SOBA", "MASOBA", "SABA") else 2
    assert float(kept["z"]["optimizer"]["state"][0]["step"]) == 9 * inner


def test_an_optimiser_may_begin_in_a_run_that_goes_on() -> None:
    plain, adaptive = blo.SOBA(lower_step=0.1, upper_step=0.05), blo.SOBA(upper_step=0.05, lower_optimizer=adam)
    state = adaptive.step(plain.step(plain.init(*start()), *OBJECTIVES, *BATCHES), *OBJECTIVES, *BATCHES)
    assert state["memory"]["optimizers"]["z"]["optimizer"]["state"][0]["step"] == 1


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: blo.SOBA(upper_step=0.1), ValueError, "must be given, but is None. Or pass `lower_opt"),
        (
            lambda: blo.AmIGO(lower_step=0.1, upper_step=0.1, lower_optimizer=adam),
            ValueError,
            "no effect together with",
        ),
        (lambda: blo.SOBA(lower_step=0.1, upper_step=0.1, lower_scheduler=halved), ValueError, "needs a `lower_opt"),
        (
            lambda: MAKERS["StocBiO"](lower_optimizer=adam, lower_step=None),
            ValueError,
            "`lower_step` must be given, but",
        ),
        (lambda: blo.F2SA(lower_optimizer=adam), ValueError, "`upper_step` must be given with a `lower_optimizer`"),
        (
            lambda: blo.BOME(upper_step=0.1, lower_optimizer=adam([torch.ones(1)])),  # type: ignore[arg-type]
            blo.StructureError,
            "`lower_optimizer` must be a function that creates one, but is of type Adam",
        ),
    ],
    ids=["no step", "two steps", "schedule alone", "series", "coupled step", "optimiser"],
)
def test_settings_that_do_not_go_together_are_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("lower", "words"),
    [
        ({"lower_optimizer": lbfgs}, "`lower_optimizer` must step from one gradient, but LBFGS evaluates"),
        ({"lower_optimizer": lambda p: 3}, "`lower_optimizer` must make a torch optimiser.*gave int"),
        ({"lower_optimizer": lambda p: sgd([torch.ones(1)])}, "`lower_optimizer`.*made one of others"),
        ({"lower_optimizer": adam, "lower_scheduler": lambda o: 3}, "`lower_scheduler` must make.*gave int"),
        ({"lower_optimizer": adam, "lower_scheduler": lr_scheduler.ReduceLROnPlateau}, "ReduceLROnPlateau needs"),
    ],
    ids=["lbfgs", "number", "of others", "no schedule", "plateau"],
)
def test_an_optimiser_that_cannot_follow_directions_is_refused(lower: dict[str, Any], words: str) -> None:
    algorithm = blo.SOBA(upper_step=0.1, **lower)
    with pytest.raises(blo.StructureError, match=words):
        algorithm.step(algorithm.init(*start()), *OBJECTIVES, *BATCHES)


@pytest.mark.parametrize(
    ("lower", "words"),
    [
        ({"lower_step": 0.1}, "`state` holds the state of a `lower_optimizer`, but the algorithm has none"),
        ({"lower_optimizer": sgd, "lower_scheduler": halved}, "not of the SGD that `lower_optimizer` makes"),
        ({"lower_optimizer": adam}, "`state` holds a StepLR, but there is no `lower_scheduler`"),
        ({"lower_optimizer": adam, "lower_scheduler": root}, "`lower_scheduler` must make the StepLR"),
    ],
    ids=["plain", "other optimiser", "no schedule", "other schedule"],
)
def test_a_state_of_another_optimiser_is_refused(lower: dict[str, Any], words: str) -> None:
    algorithm = blo.SOBA(upper_step=0.1, lower_optimizer=adam, lower_scheduler=halved)
    state = algorithm.step(algorithm.init(*start()), *OBJECTIVES, *BATCHES)
    with pytest.raises(blo.StructureError, match=words):
        blo.SOBA(upper_step=0.1, **lower).step(state, *OBJECTIVES, *BATCHES)
