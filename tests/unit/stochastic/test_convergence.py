"""On full batches each algorithm arrives where NumPy says it should."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import blo
from blo.stochastic import Algorithm, Power, draw, run
from tests.oracles import Array
from tests.unit.stochastic import quadratic
from tests.unit.stochastic.quadratic import LOWER, UPPER, Quadratic

CASE = Quadratic.draw(11)
UPPER_BATCHES, LOWER_BATCHES = CASE.full()


def arrive(algorithm: Algorithm, steps: int) -> tuple[Array, Array]:
    zero = torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    state = run(
        algorithm,
        algorithm.init(*zero),
        quadratic.upper,
        quadratic.lower,
        steps=steps,
        upper_batches=UPPER_BATCHES,
        lower_batches=LOWER_BATCHES,
    )
    return state["theta"].numpy(), state["z"].numpy()


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [
        (blo.SOBA(lower_step=0.4, upper_step=0.2), 150),
        (blo.MASOBA(lower_step=0.4, upper_step=0.2, mixing=0.5), 200),
        (blo.StocBiO(lower_step=0.3, upper_step=0.3, inner_steps=5, products=80), 60),
        (blo.AmIGO(lower_step=0.3, upper_step=0.3, inner_steps=5, adjoint_steps=5), 100),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_bilevel_optimum_is_reached(algorithm: Algorithm, steps: int) -> None:
    theta, z = arrive(algorithm, steps)
    truth_theta, truth_z = CASE.optimum()
    np.testing.assert_allclose(theta, truth_theta, atol=1e-9)
    np.testing.assert_allclose(z, truth_z, atol=1e-9)


def saba_on_single_examples(theta: torch.Tensor, z: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    algorithm = blo.SABA(lower_step=0.15, upper_step=0.1, upper_count=4, lower_count=6)
    generator = torch.Generator().manual_seed(0)
    upper, lower = (
        draw(list(enumerate(CASE.batches(names, [[i] for i in range(count)], theta.dtype))), generator)
        for names, count in ((UPPER, 4), (LOWER, 6))
    )
    oracles = quadratic.upper, quadratic.lower
    return run(algorithm, algorithm.init(theta, z), *oracles, steps=steps, upper_batches=upper, lower_batches=lower)


def test_saba_reaches_the_optimum_with_constant_steps_on_single_examples() -> None:
    state = saba_on_single_examples(torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), 900)
    theta, z = CASE.optimum()
    np.testing.assert_allclose(state["theta"], theta, atol=1e-9)
    np.testing.assert_allclose(state["z"], z, atol=1e-9)


@pytest.mark.parametrize("products", [0, 1, 4])
def test_stocbio_stops_where_its_neumann_series_puts_the_optimum(products: int) -> None:
    theta, _ = arrive(blo.StocBiO(lower_step=0.3, upper_step=0.3, inner_steps=5, products=products), 150)
    H = CASE.mean["H"]
    series = 0.3 * sum(np.linalg.matrix_power(np.eye(5) - 0.3 * H, i) for i in range(products + 1))
    np.testing.assert_allclose(theta, CASE.optimum(inverse=series)[0], atol=1e-9)


@pytest.mark.parametrize("weight", [2.0, 20.0])
def test_f2sa_stops_at_the_optimum_of_the_penalised_problem(weight: float) -> None:
    theta, z = arrive(blo.F2SA(lower_step=0.6, upper_step=0.25, multiplier=weight, inner_steps=8), 70)
    truth_theta, truth_z = CASE.optimum(weight=weight)
    np.testing.assert_allclose(theta, truth_theta, atol=1e-9)
    np.testing.assert_allclose(z, truth_z, atol=1e-9)


def test_the_bias_of_f2sa_falls_like_one_over_the_multiplier() -> None:
    biases = [
        np.linalg.norm(
            arrive(blo.F2SA(lower_step=0.6, upper_step=0.25, multiplier=weight, inner_steps=8), 70)[0]
            - CASE.optimum()[0]
        )
        for weight in (20.0, 40.0, 80.0)
    ]
    ratios = np.divide(biases[1:], biases[:-1])
    np.testing.assert_allclose(ratios, 0.5, atol=0.02)


def test_f2sa_with_a_growing_multiplier_closes_in_on_the_optimum() -> None:
    algorithm = blo.F2SA(lower_step=0.5, upper_step=Power(0.2, -1 / 3), multiplier=Power(4.0, 1 / 3), inner_steps=2)
    distances = [float(np.linalg.norm(arrive(algorithm, steps)[0] - CASE.optimum()[0])) for steps in (50, 400)]
    # Eight times the steps double the multiplier, and halve the bias.
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.1)


def test_the_bias_of_bome_falls_with_its_step() -> None:
    biases = [
        np.linalg.norm(
            arrive(blo.BOME(lower_step=0.5, upper_step=step, inner_steps=5), round(12 / step))[0] - CASE.optimum()[0]
        )
        for step in (0.1, 0.02)
    ]
    assert biases[0] < 0.02
    assert biases[1] < biases[0] / 4


def test_saba_in_single_precision_forgets_the_rounding_of_its_first_gradients() -> None:
    state = saba_on_single_examples(torch.full((3,), 1e5), torch.full((5,), -1e5), 1200)  # a start far away
    theta, z = CASE.optimum()
    np.testing.assert_allclose(state["theta"], theta, atol=2e-5)
    np.testing.assert_allclose(state["z"], z, atol=2e-5)


def curved(theta: torch.Tensor, z: torch.Tensor, batch: None) -> torch.Tensor:
    return (0.5 * (z - theta.sin()).square() + 0.25 * z.pow(4)).sum()


def above(theta: torch.Tensor, z: torch.Tensor, batch: None) -> torch.Tensor:
    return 0.5 * (z - 0.3).square().sum() + 0.05 * theta.square().sum() + 0.1 * theta.cos().sum()


@pytest.mark.parametrize(
    ("algorithm", "messages"),
    [
        (
            blo.F2SA(lower_step=0.1, upper_step=0.1, multiplier=1e3),
            {"theta moves too fast for z and y", "theta oscillates"},
        ),
        (blo.SOBA(lower_step=0.1, upper_step=6.0), {"theta oscillates"}),
        (blo.F2SA(lower_step=0.1, multiplier=1e3), set()),
        (blo.SOBA(lower_step=0.1, upper_step=0.05), set()),
        (blo.BOME(lower_step=0.1, upper_step=0.05), set()),
    ],
    ids=["outrun", "cycle", "coupled", "soba", "bome"],
)
def test_a_run_that_does_not_settle_says_so(algorithm: Algorithm, messages: set[str]) -> None:
    state = algorithm.init(torch.ones(2).double(), torch.zeros(2).double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(algorithm, state, above, curved, steps=200)
    assert len(caught) == len(messages)
    assert all(any(message in str(one.message) for one in caught) for message in messages)
    if messages:
        with pytest.raises(blo.ConvergenceError, match="does not settle"):
            run(algorithm, state, above, curved, steps=200, on_failure="raise")


def test_the_default_steps_of_f2sa_are_coupled_and_arrive_at_the_penalised_optimum() -> None:
    for weight in (5.0, 50.0):
        theta, _ = arrive(blo.F2SA(lower_step=0.6, multiplier=weight), 80 * round(weight))
        np.testing.assert_allclose(theta, CASE.optimum(weight=weight)[0], atol=1e-8)


def bowl(theta: torch.Tensor, z: torch.Tensor, batch: torch.Tensor | None) -> torch.Tensor:
    return 0.5 * (z - theta - 1.0 - (0.0 if batch is None else batch)).square().sum()


def target(theta: torch.Tensor, z: torch.Tensor, batch: None) -> torch.Tensor:
    return 0.5 * (z - 2.0).square().sum() + 0.5 * theta.square().sum()


def said(algorithm: Algorithm, dtype: torch.dtype, steps: int, lower: Any = bowl, batches: Any = None) -> list[str]:
    state = algorithm.init(torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(algorithm, state, target, lower, steps=steps, lower_batches=batches)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (blo.SOBA(lower_step=1e-8, upper_step=0.1), "z, q moved in one direction"),
        (blo.AmIGO(lower_step=1e-8, upper_step=0.1, inner_steps=1, adjoint_steps=1), "z, q moved in one direction"),
        (blo.StocBiO(lower_step=1e-8, upper_step=0.1, inner_steps=1, products=1), "z moved in one direction"),
        (blo.SOBA(lower_step=0.3, upper_step=1e-6), "theta, z, q moved in one direction"),
        (blo.F2SA(lower_step=0.3, multiplier=1e6), "theta, z, y moved in one direction"),
        (blo.SOBA(lower_step=2.05, upper_step=0.1), "become longer and longer"),
        (blo.MASOBA(lower_step=0.3, upper_step=2.5, mixing=0.5), "become longer and longer"),
    ],
    ids=["soba", "amigo", "stocbio", "short steps of theta", "f2sa", "long steps of z", "long steps of theta"],
)
def test_steps_that_lead_nowhere_are_named(algorithm: Algorithm, words: str, dtype: torch.dtype) -> None:
    (message,) = said(algorithm, dtype, 200 if "longer" in words else 400)
    assert "does not settle" in message and words in message


def test_steps_below_the_rounding_of_theta_are_named() -> None:
    algorithm = blo.SOBA(lower_step=0.3, upper_step=1e-9)
    state = algorithm.init(torch.ones(2), torch.zeros(2))
    with pytest.warns(blo.ConvergenceWarning, match="theta has not moved.*float64"):
        run(algorithm, state, target, bowl, steps=200)


def test_an_adjoint_that_never_settles_is_named() -> None:
    def flat(theta: torch.Tensor, z: torch.Tensor, batch: None) -> torch.Tensor:
        return 0.5 * ((z - theta).square() * torch.tensor([1.0, 1e-8], dtype=z.dtype)).sum()

    (message,) = said(blo.SOBA(lower_step=0.3, upper_step=0.1), torch.float64, 400, flat)
    assert "q moved in one direction" in message


def test_a_lower_problem_without_a_minimiser_is_named_with_noise_as_well() -> None:
    def concave(theta: torch.Tensor, z: torch.Tensor, batch: torch.Tensor | None) -> torch.Tensor:
        return -0.1 * bowl(theta, z, batch)

    algorithm, draws = blo.SOBA(lower_step=0.3, upper_step=0.1), [0.3, -0.2, 0.1]
    for batches in (None, draw(torch.tensor(draws).unbind(), torch.Generator().manual_seed(0))):
        (message,) = said(algorithm, torch.float64, 400, concave, batches)
        assert "longer and longer" in message and "no minimiser" in message


@pytest.mark.parametrize("seed", range(20))
def test_noise_at_the_solution_is_no_divergence(seed: int) -> None:
    draws = draw(torch.randn(50, generator=torch.Generator().manual_seed(seed)).unbind())
    assert said(blo.SOBA(lower_step=0.3, upper_step=0.1), torch.float32, 80, bowl, draws) == []


@pytest.mark.parametrize("seed", [23, 26, 32, 38, 43, 52])
def test_the_rounding_of_a_large_z_that_follows_a_small_theta_is_no_divergence(seed: int) -> None:
    """Theta moves by less than the rounding of z, so each step of z is one of rounding, and may be longer by chance."""
    generator = torch.Generator().manual_seed(seed)
    middle, goal = 1e4 * torch.randn(20, generator=generator), 4e-3 * torch.rand(20, generator=generator)

    def lower(theta: torch.Tensor, z: torch.Tensor, batch: None) -> torch.Tensor:
        return 0.5 * (z - middle - theta).square().sum()

    def upper(theta: torch.Tensor, z: torch.Tensor, batch: None) -> torch.Tensor:
        return 0.5 * (theta - goal).square().sum() + 0 * z.sum()

    algorithm = blo.SOBA(lower_step=0.5, upper_step=5e-3)
    state = run(algorithm, algorithm.init(torch.zeros(20), middle.clone()), upper, lower, steps=200)
    truth = goal.double().numpy() * (1 - (1 - 5e-3) ** 200)
    np.testing.assert_allclose(state["theta"], truth, rtol=1e-4)
    np.testing.assert_allclose(state["z"], middle.double().numpy() + truth, rtol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [200, 600])
def test_a_run_that_goes_on_at_the_solution_says_nothing(steps: int, dtype: torch.dtype) -> None:
    algorithm = blo.SOBA(lower_step=0.3, upper_step=0.1)
    state = algorithm.init(torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype))
    for _ in range(3):
        state = run(algorithm, state, target, bowl, steps=steps)  # a warning would be an error
    torch.testing.assert_close(state["theta"], torch.full((2,), 0.5, dtype=dtype))
