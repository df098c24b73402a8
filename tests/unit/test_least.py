"""The iterates with the least residuals, against all of them side by side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blo.linsolve import _least
from blo.linsolve._least import Least

LANES = {"none": (), "three": (3,), "two by two": (2, 2), "not one": (0,)}


def drawn(lanes: tuple[int, ...], steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return iterates and squares of residuals that rise and fall; some are met twice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, *lanes, 4, generator=generator, dtype=torch.float64)
    trend = -torch.arange(steps).reshape(-1, *[1] * (len(lanes) + bool(lanes)))
    shape = (steps, *lanes, 1) if lanes else (steps,)
    rr = 0.2 * trend + torch.randint(-4, 4, shape, generator=generator)
    rr = rr.double().exp()
    return x, rr.where(torch.rand(shape, generator=generator) < 0.9, float("nan"))


def brute(x: Tensor, rr: Tensor) -> Tensor:
    """Return, in each lane, the first iterate with the least residual."""
    where = rr.nan_to_num(nan=float("inf")).argmin(0)
    return x.gather(0, where.expand(x.shape[1:]).unsqueeze(0)).squeeze(0)


@given(st.sampled_from(sorted(LANES)), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([2, 3, 16]))
def test_the_first_iterate_with_the_least_residual_is_found(lanes: str, steps: int, seed: int, most: int) -> None:
    x, rr = drawn(LANES[lanes], steps, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_least, "_ITERATES", most)
        least = Least(x[0], rr[0])
        for index in range(1, steps):
            least.see(x[index], rr[index])
            assert len(least._kept) <= most
    assert torch.equal(least.least(), rr.nan_to_num(nan=float("inf")).amin(0))
    assert torch.equal(least.iterate(), brute(x, rr))


@pytest.mark.parametrize("lanes", ["none", "three"])
def test_it_is_found_under_vmap(lanes: str) -> None:
    x, rr = (torch.stack(each, 1) for each in zip(*(drawn(LANES[lanes], 40, seed) for seed in range(5)), strict=True))

    def found(x: Tensor, rr: Tensor) -> Tensor:
        least = Least(x[0], rr[0])
        for index in range(1, 40):
            least.see(x[index], rr[index])
        return least.iterate()

    truth = torch.stack([brute(x[:, k], rr[:, k]) for k in range(5)])
    assert torch.equal(torch.vmap(found, in_dims=1)(x, rr), truth)


def test_few_large_iterates_are_kept() -> None:
    large = torch.zeros(2**18)
    least = Least(large, torch.tensor(3.0))
    for size in (2.0, 1.0, 4.0):
        least.see(large, torch.tensor(size))
        assert len(least._kept) == 1
    assert float(least.least()) == 1.0
