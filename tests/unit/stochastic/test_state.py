"""States can be saved, are never modified, and keep structure, dtype and device."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import blo
from blo.stochastic import Algorithm, draw, run
from tests.unit.stochastic import quadratic
from tests.unit.stochastic.quadratic import LOWER, UPPER, Quadratic

CASE = Quadratic.draw(21)
ALGORITHMS: list[Algorithm] = [
    blo.SOBA(lower_step=0.1, upper_step=0.05),
    blo.MASOBA(lower_step=0.1, upper_step=0.05, mixing=0.3),
    blo.SABA(lower_step=0.1, upper_step=0.05, upper_count=4, lower_count=6),
    blo.StocBiO(lower_step=0.1, upper_step=0.05, inner_steps=2, products=2),
    blo.AmIGO(lower_step=0.1, upper_step=0.05, inner_steps=2, adjoint_steps=2),
    blo.F2SA(lower_step=0.1, upper_step=0.05),
    blo.BOME(lower_step=0.1, upper_step=0.05, inner_steps=2),
]
every = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda value: type(value).__name__)


def sources(algorithm: Algorithm, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Return endless random single examples, numbered for SABA."""
    found = {}
    for key, names, count in (("upper_batches", UPPER, 4), ("lower_batches", LOWER, 6)):
        batches: list[Any] = CASE.batches(names, [[i] for i in range(count)], dtype)
        found[key] = draw(list(enumerate(batches)) if isinstance(algorithm, blo.SABA) else batches, generator)
    return found


def start(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(3, dtype=dtype), torch.ones(5, dtype=dtype)


def assert_identical(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_identical(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_identical(a, b)
    else:
        assert left == right


@every
def test_a_saved_run_continues_bit_for_bit(algorithm: Algorithm) -> None:
    generator = torch.Generator().manual_seed(3)
    objectives = quadratic.upper, quadratic.lower
    whole = run(algorithm, algorithm.init(*start()), *objectives, steps=11, **sources(algorithm, generator))

    generator = torch.Generator().manual_seed(3)
    half = run(algorithm, algorithm.init(*start()), *objectives, steps=5, **sources(algorithm, generator))
    file = io.BytesIO()
    torch.save({"state": half, "generator": generator.get_state()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    generator = torch.Generator()
    generator.set_state(loaded["generator"])
    rest = run(algorithm, loaded["state"], *objectives, steps=6, **sources(algorithm, generator))
    assert_identical(whole, rest)
    assert whole["step"] == 11


@every
def test_a_step_leaves_its_arguments_as_they_were(algorithm: Algorithm) -> None:
    theta, z = start()
    theta.requires_grad_()
    draws = sources(algorithm, torch.Generator().manual_seed(0))
    state = algorithm.step(algorithm.init(theta, z), quadratic.upper, quadratic.lower, **draws)
    before = copy.deepcopy(state)
    after = algorithm.step(state, quadratic.upper, quadratic.lower, **draws)
    assert_identical(state, before)
    assert not torch.equal(after["theta"], state["theta"])
    assert theta.grad is None
    assert not after["theta"].requires_grad
    assert torch.equal(theta, torch.ones(3, dtype=torch.float64))


def test_a_state_does_not_follow_later_changes_of_its_start() -> None:
    theta, z = start()
    state = ALGORITHMS[0].init(theta, z)
    theta.fill_(7)
    z.fill_(7)
    assert torch.equal(state["theta"], torch.ones(3, dtype=torch.float64))
    assert torch.equal(state["z"], torch.ones(5, dtype=torch.float64))


@every
def test_trees_give_the_numbers_of_flat_vectors(algorithm: Algorithm) -> None:
    def flat(theta: Any, z: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([theta["a"].reshape(-1), theta["b"]]), torch.cat([z[0], z[1][0].reshape(-1)])

    def upper(theta: Any, z: Any, batch: Any) -> torch.Tensor:
        return quadratic.upper(*flat(theta, z), batch)

    def lower(theta: Any, z: Any, batch: Any) -> torch.Tensor:
        return quadratic.lower(*flat(theta, z), batch)

    theta, z = torch.arange(3.0, dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    trees = {"a": theta[:2].reshape(2, 1), "b": theta[2:]}, (z[:1], [z[1:].reshape(2, 2)])
    results = [
        run(
            algorithm, algorithm.init(*at), *objectives, steps=3, **sources(algorithm, torch.Generator().manual_seed(1))
        )
        for at, objectives in (((theta, z), (quadratic.upper, quadratic.lower)), (trees, (upper, lower)))
    ]
    plain, nested = results
    found = flat(nested["theta"], nested["z"])
    np.testing.assert_allclose(found[0], plain["theta"], rtol=1e-13)
    np.testing.assert_allclose(found[1], plain["z"], rtol=1e-13)
    assert nested["theta"]["a"].shape == (2, 1)
    assert nested["z"][1][0].shape == (2, 2)


@every
def test_single_precision_stays_single(algorithm: Algorithm) -> None:
    draws = sources(algorithm, torch.Generator().manual_seed(0), torch.float32)
    state = run(algorithm, algorithm.init(*start(torch.float32)), quadratic.upper, quadratic.lower, steps=3, **draws)
    tensors = [leaf for leaf in blo.tree.leaves(state) if isinstance(leaf, torch.Tensor)]
    assert {leaf.dtype for leaf in tensors} == {torch.float32}
    assert all(bool(leaf.isfinite().all()) for leaf in tensors)


def test_steps_can_be_made_without_grad_mode() -> None:
    def ran() -> dict[str, Any]:
        draws = sources(ALGORITHMS[0], torch.Generator().manual_seed(0))
        return run(ALGORITHMS[0], ALGORITHMS[0].init(*start()), quadratic.upper, quadratic.lower, steps=2, **draws)

    with torch.no_grad():
        state = ran()
    assert_identical(state, ran())


def taken(calls: int, steps: int, batches: Callable[[], Iterable[Any]]) -> tuple[list[int], dict[str, Any]]:
    """Return the batches of the lower level that `calls` runs of `steps` steps took, and the last state."""
    seen: list[int] = []

    def noted(theta: torch.Tensor, z: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append(int(batch))
        return 0.5 * (z - theta).square().sum()

    algorithm = blo.AmIGO(lower_step=0.1, upper_step=0.1, inner_steps=1, adjoint_steps=1)
    state = algorithm.init(torch.ones(1), torch.zeros(1))
    for _ in range(calls):
        state = run(algorithm, state, lambda t, z, b: (t * z).sum(), noted, steps=steps, lower_batches=batches())
    return seen, state


@pytest.mark.parametrize("wrap", [list, torch.utils.data.DataLoader], ids=["list", "loader"])
def test_short_runs_over_a_list_read_on_where_the_last_one_stopped(wrap: Any) -> None:
    seen, state = taken(3, 1, lambda: wrap(range(5)))
    assert seen == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert state["taken"] == (3, 9)


class Counted(torch.utils.data.IterableDataset[int]):
    """A stream of examples, whose loader has a `len` that raises an error."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_a_loader_of_unknown_length_starts_again_at_its_end() -> None:
    assert taken(1, 2, lambda: torch.utils.data.DataLoader(Counted()))[0] == [0, 1, 2, 0, 1, 2]
