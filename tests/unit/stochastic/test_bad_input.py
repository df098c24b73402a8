"""An argument that does not fit raises an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo.errors import ConvergenceError, NonFiniteError, StructureError
from blo.stochastic import Power, draw, run

ALGORITHM = blo.SOBA(lower_step=0.1, upper_step=0.1)
ZERO = torch.zeros(2, dtype=torch.float64)


def lower(theta: Tensor, z: Tensor, batch: object = None) -> Tensor:
    return (z - theta).square().sum()


def upper(theta: Tensor, z: Tensor, batch: object = None) -> Tensor:
    return z.square().sum()


def step(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"state": ALGORITHM.init(ZERO, ZERO), "upper": upper, "lower": lower, **changes}
    return ALGORITHM.step(**arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: blo.SOBA(lower_step=0.0, upper_step=0.1), "`lower_step` must be positive"),
        (lambda: blo.SOBA(lower_step=0.1, upper_step=float("nan")), "`upper_step` must be positive"),
        (lambda: blo.SABA(lower_step=0.1, upper_step=0.1, upper_count=0, lower_count=1), "`upper_count`"),
        (lambda: blo.MASOBA(lower_step=0.1, upper_step=0.1, mixing=1.5), "`mixing`.*at most 1"),
        (lambda: blo.AmIGO(lower_step=0.1, upper_step=0.1, inner_steps=0), "`inner_steps`"),
        (lambda: blo.AmIGO(lower_step=0.1, upper_step=0.1, adjoint_steps=0), "`adjoint_steps`"),
        (lambda: blo.StocBiO(lower_step=0.1, upper_step=0.1, products=-1), "`products`"),
        (lambda: blo.F2SA(lower_step=0.1, upper_step=0.1, multiplier=-1.0), "`multiplier`"),
        (lambda: blo.BOME(lower_step=0.1, upper_step=0.1, barrier=0.0), "`barrier`"),
        (lambda: blo.SOBA(lower_step="0.1", upper_step=0.1), "`lower_step` must be a number.*got str"),  # type: ignore[arg-type]
        (lambda: Power(-1.0, 0.5), "`scale`"),
        (lambda: Power(1.0, 0.5, delay=0.0), "`delay`"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_schedule_that_leaves_the_positive_numbers_is_refused_when_it_does() -> None:
    algorithm = blo.SOBA(lower_step=0.1, upper_step=lambda k: 1.0 - k)
    state = algorithm.step(algorithm.init(ZERO, ZERO), upper, lower)
    with pytest.raises(ValueError, match=r"`upper_step`.*at step 1 is 0\.0"):
        algorithm.step(state, upper, lower)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": {"theta": ZERO}}, "`state` must come from SOBA.init"),
        ({"state": {"algorithm": "SOBA", "step": 0, "theta": ZERO, "z": ZERO}}, r"has no \['memory'\]"),
        ({"state": blo.BOME(lower_step=0.1, upper_step=0.1).init(ZERO, ZERO)}, "SOBA.step, but is of BOME"),
        (
            {"lower": blo.LowerProblem(lower, constraint=blo.Simplex())},
            "`lower` must be a function.*without constraints",
        ),
        ({"upper": lambda t, z, b: z.square()}, r"`upper` must return a scalar tensor, but returned shape \(2,\)"),
        ({"lower": lambda t, z, b: 1.0}, "`lower` must return a scalar tensor, but returned float"),
        ({"lower": lambda t, z, b: z.detach().sum()}, "`lower` must depend on theta or z"),
        ({"lower_batches": torch.zeros(3)}, "`lower_batches` must be an iterator or a list of batches.*Tensor"),
        ({"upper_batches": (ZERO, ZERO)}, "`upper_batches` must be an iterator or a list.*single batch in a list"),
        ({"upper_batches": 3}, "`upper_batches`.*int"),
        ({"lower_batches": iter([])}, "`lower_batches` ran out after 0 batches"),
    ],
)
def test_arguments_of_a_step_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StructureError, match=words):
        step(**changes)


def test_a_schedule_without_a_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"`upper_step` must be a number.*got NoneType"):
        nothing: Any = lambda k: None  # noqa: E731
        run(blo.SOBA(lower_step=0.1, upper_step=nothing), ALGORITHM.init(ZERO, ZERO), upper, lower, steps=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z": torch.zeros(3).double()}, "'q' differs"),
        ({"z": torch.zeros(2)}, "'q' differs"),
        ({"theta": torch.zeros(3).double()}, "'h' differs"),
        ({"memory": {}}, "'q' differs"),
    ],
)
def test_a_state_that_was_put_together_is_refused(changes: dict[str, Any], words: str) -> None:
    algorithm = blo.MASOBA(lower_step=0.1, upper_step=0.1, mixing=0.5)
    with pytest.raises(StructureError, match=words):
        algorithm.step({**algorithm.init(ZERO, ZERO), **changes}, upper, lower)


def test_running_out_of_batches_is_an_error_inside_a_step() -> None:
    algorithm = blo.StocBiO(lower_step=0.1, upper_step=0.1, inner_steps=2, products=1)
    with pytest.raises(StructureError, match="ran out after 3 batches"):
        algorithm.step(algorithm.init(ZERO, ZERO), upper, lower, None, [None] * 3)


def test_a_start_without_floating_point_tensors_is_refused() -> None:
    with pytest.raises(StructureError, match="`theta` must be floating point"):
        ALGORITHM.init(torch.zeros(2, dtype=torch.int64), ZERO)
    with pytest.raises(StructureError, match="`z0` must hold at least one tensor"):
        ALGORITHM.init(ZERO, ())


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (ZERO, r"pairs \(number, batch\), but got Tensor"),
        ((torch.zeros(1), ZERO), "but got Tensor, Tensor"),  # inputs and labels without a number
        ((0, ZERO, ZERO), "but got int, Tensor, Tensor"),
        ((3, None), "numbered from 0 to 1.*has the number 3"),
        ((-1, None), "has the number -1"),
    ],
)
def test_saba_wants_numbered_batches(batch: object, words: str) -> None:
    algorithm = blo.SABA(lower_step=0.1, upper_step=0.1, upper_count=2, lower_count=2)
    with pytest.raises(StructureError, match=words):
        algorithm.step(algorithm.init(ZERO, ZERO), upper, lower, [(0, None)], [batch])


@pytest.mark.parametrize("counts", [(2, 3), (3, 2), (1, 2), (2, 1)])
def test_saba_refuses_a_state_that_remembers_other_batches(counts: tuple[int, int]) -> None:
    made, other = (
        blo.SABA(lower_step=0.1, upper_step=0.1, upper_count=upper_count, lower_count=lower_count)
        for upper_count, lower_count in ((2, 2), counts)
    )
    with pytest.raises(
        StructureError, match=r"has rows for 2 (upper|lower) batches, but `(upper|lower)_count` is [13]"
    ):
        other.step(made.init(ZERO, ZERO), upper, lower, [(0, None)], [(0, None)])


@pytest.mark.parametrize("name", ["SOBA", "F2SA", "BOME"])
def test_a_lower_problem_without_theta_is_reported_as_the_caller_asks(name: str) -> None:
    algorithm = getattr(blo, name)(lower_step=0.1, upper_step=0.1)
    problem = algorithm, algorithm.init(ZERO, ZERO), upper, lambda theta, z, batch: z.square().sum()
    words = "theta does not enter the lower problem"
    for make in (partial(algorithm.step, *problem[1:]), partial(run, *problem, steps=1)):
        with pytest.warns(blo.ConstantWarning, match=words):
            make()
        with pytest.warns(blo.ConstantWarning, match=words):
            make(on_failure="warn")
        with pytest.raises(ConvergenceError, match=words):
            make(on_failure="raise")
        make(on_failure="ignore")  # a warning would be an error
        with pytest.raises(ValueError, match="`on_failure` must be"):
            make(on_failure="never")


def test_divergence_is_reported_as_the_caller_asks() -> None:
    algorithm = blo.SOBA(lower_step=0.1, upper_step=1e100)
    diverge = partial(run, algorithm, algorithm.init(ZERO + 1, ZERO), upper, lower, steps=16)
    for asked in (None, "raise"):
        with pytest.raises(NonFiniteError, match=r"theta after \d+ steps"):
            diverge(on_failure=asked)
    with pytest.warns(blo.ConvergenceWarning, match=r"(theta|z) after \d+ steps"):
        diverge(on_failure="warn")
    assert not diverge(on_failure="ignore")["theta"].isfinite().all()


def test_run_begins_a_list_anew_and_reads_an_iterator_on() -> None:
    seen: list[int] = []

    def recording(theta: Tensor, z: Tensor, batch: int) -> Tensor:
        seen.append(batch)
        return lower(theta, z)

    state = ALGORITHM.init(ZERO, ZERO)
    run(ALGORITHM, state, upper, recording, steps=5, lower_batches=[1, 2, 3])
    assert seen == [1, 2, 3, 1, 2]
    source = iter(range(10, 20))
    run(ALGORITHM, state, upper, recording, steps=2, lower_batches=source)
    assert next(source) == 12
    with pytest.raises(StructureError, match="ran out after 0 batches"):
        run(ALGORITHM, state, upper, lower, steps=1, lower_batches=[])


def test_a_true_callback_ends_the_run() -> None:
    state = run(ALGORITHM, ALGORITHM.init(ZERO, ZERO), upper, lower, steps=9, callback=lambda s: s["step"] == 4)
    assert state["step"] == 4


def test_draws_follow_the_generator_and_cover_the_batches() -> None:
    draws = draw("abc", torch.Generator().manual_seed(0))
    first = [next(draws) for _ in range(60)]
    again = draw("abc", torch.Generator().manual_seed(0))
    assert first == [next(again) for _ in range(60)]
    assert set(first) == set("abc")
    with pytest.raises(StructureError, match="`batches` must hold at least one"):
        draw([])


def test_a_power_begins_at_its_scale_and_follows_its_exponent_after_the_delay() -> None:
    schedule = Power(3.0, -0.5, delay=10.0)
    assert schedule(0) == 3.0
    assert schedule(30) == pytest.approx(1.5, rel=1e-15)
