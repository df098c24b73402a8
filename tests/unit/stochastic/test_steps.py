"""A few steps of each algorithm are those of its paper, written out in NumPy on the same batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo.stochastic import Power
from tests.oracles import Array
from tests.unit.stochastic import quadratic
from tests.unit.stochastic.quadratic import LOWER, UPPER, Quadratic, Source, lower_gradients, upper_gradients

STEPS = 4
CASE = Quadratic.draw(1)
#: Falling steps, so that each value is asked for at the right step.
RHO, GAMMA = Power(0.2, -0.5), Power(0.1, -0.4)


def rho(k: int) -> float:
    return float(0.2 / (k + 1) ** 0.5)


def gamma(k: int) -> float:
    return float(0.1 / (k + 1) ** 0.4)


def joint(theta: Array, z: Array, q: Array, up: Source, low: Source) -> tuple[Array, Array, Array]:
    g, f = low.mean(), up.mean()
    direct, v = upper_gradients(f, theta, z)
    return direct - g["B"].T @ q, lower_gradients(g, theta, z)[1], g["H"] @ q - v


def soba(k: int, theta: Array, z: Array, m: dict[str, Any], up: Source, low: Source) -> Any:
    q = m.get("q", 0 * z)
    d_theta, d_z, d_q = joint(theta, z, q, up, low)
    return theta - gamma(k) * d_theta, z - rho(k) * d_z, {"q": q - rho(k) * d_q}


def masoba(k: int, theta: Array, z: Array, m: dict[str, Any], up: Source, low: Source) -> Any:
    q, h = m.get("q", 0 * z), m.get("h", 0 * theta)
    d_theta, d_z, d_q = joint(theta, z, q, up, low)
    share = 0.5 / (k + 1)
    return (
        theta - gamma(k) * h,
        z - rho(k) * d_z,
        {"q": q - rho(k) * d_q, "h": (1 - share) * h + share * d_theta},
    )


def stocbio(k: int, theta: Array, z: Array, m: dict[str, Any], up: Source, low: Source) -> Any:
    for _ in range(3):
        z = z - rho(k) * lower_gradients(low.mean(), theta, z)[1]
    direct, v = upper_gradients(up.mean(), theta, z)
    terms = [v]
    for _ in range(2):
        terms.append((np.eye(len(z)) - rho(k) * low.mean()["H"]) @ terms[-1])
    return theta - gamma(k) * (direct - low.mean()["B"].T @ (rho(k) * sum(terms))), z, {}


def amigo(k: int, theta: Array, z: Array, m: dict[str, Any], up: Source, low: Source) -> Any:
    q = m.get("q", 0 * z)
    for _ in range(3):
        z = z - rho(k) * lower_gradients(low.mean(), theta, z)[1]
    direct, v = upper_gradients(up.mean(), theta, z)
    for _ in range(2):
        q = q - rho(k) * (low.mean()["H"] @ q - v)
    return theta - gamma(k) * (direct - low.mean()["B"].T @ q), z, {"q": q}


def f2sa(k: int, theta: Array, z: Array, m: dict[str, Any], up: Source, low: Source) -> Any:
    y, weight = m.get("y", z), 2.0 * (k + 1) ** 0.3
    for _ in range(3):
        z = z - rho(k) * lower_gradients(low.mean(), theta, z)[1]
        f_y, g_y = upper_gradients(up.mean(), theta, y)[1], lower_gradients(low.mean(), theta, y)[1]
        y = y - rho(k) / (2 * weight) * (f_y + weight * g_y)
    direct = upper_gradients(up.mean(), theta, y)[0]
    at_y, at_z = lower_gradients(low.mean(), theta, y)[0], lower_gradients(low.mean(), theta, z)[0]
    return theta - gamma(k) * (direct + weight * (at_y - at_z)), z, {"y": y}


def bome(k: int, theta: Array, z: Array, m: dict[str, Any], up: Source, low: Source) -> Any:
    g, f = low.mean(), up.mean()
    best = z
    for _ in range(3):
        best = best - rho(k) * lower_gradients(g, theta, best)[1]
    gap = np.concatenate(
        [lower_gradients(g, theta, z)[0] - lower_gradients(g, theta, best)[0], lower_gradients(g, theta, z)[1]]
    )
    slope = np.concatenate(upper_gradients(f, theta, z))
    weight = max(0.0, (0.4 * gap @ gap - slope @ gap) / (gap @ gap))
    moved = np.concatenate([theta, z]) - gamma(k) * (slope + weight * gap)
    return moved[: len(theta)], moved[len(theta) :], {}


CASES: dict[str, tuple[blo.stochastic.Algorithm, Any, int, int]] = {
    "SOBA": (blo.SOBA(lower_step=RHO, upper_step=GAMMA), soba, 1, 1),
    "MASOBA": (blo.MASOBA(lower_step=RHO, upper_step=GAMMA, mixing=Power(0.5, -1.0)), masoba, 1, 1),
    "StocBiO": (blo.StocBiO(lower_step=RHO, upper_step=GAMMA, inner_steps=3, products=2), stocbio, 1, 6),
    "AmIGO": (blo.AmIGO(lower_step=RHO, upper_step=GAMMA, inner_steps=3, adjoint_steps=2), amigo, 1, 6),
    "F2SA": (blo.F2SA(lower_step=RHO, upper_step=GAMMA, multiplier=Power(2.0, 0.3), inner_steps=3), f2sa, 4, 8),
    "BOME": (blo.BOME(lower_step=RHO, upper_step=GAMMA, inner_steps=3, barrier=0.4), bome, 1, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_paper(name: str) -> None:
    algorithm, by_hand, takes_upper, takes_lower = CASES[name]
    rng = np.random.default_rng(2)
    theta, z, memory = rng.normal(size=3), rng.normal(size=5), {}
    state = algorithm.init(torch.as_tensor(theta), torch.as_tensor(z))
    up, low = Source(CASE, UPPER, 3), Source(CASE, LOWER, 4)
    for k in range(STEPS):
        state = algorithm.step(state, quadratic.upper, quadratic.lower, up, low)
        theta, z, memory = by_hand(k, theta, z, memory, up, low)
        found = {"theta": state["theta"], "z": state["z"], **state["memory"]}
        for key, truth in {"theta": theta, "z": z, **memory}.items():
            np.testing.assert_allclose(found[key].numpy(), truth, rtol=1e-12, atol=1e-12)
        assert state["step"] == k + 1
    assert (up.taken, low.taken) == (STEPS * takes_upper, STEPS * takes_lower)


def numbered(case: Quadratic, names: tuple[str, ...], order: list[int]) -> list[tuple[int, dict[str, Tensor]]]:
    batches = case.batches(names, [[i] for i in range(len(case.parts[names[0]]))])
    return [(i, batches[i]) for i in order]


def test_saba_steps_are_those_of_saga_on_the_three_directions() -> None:
    rng = np.random.default_rng(5)
    theta, z, q = rng.normal(size=3), rng.normal(size=5), np.zeros(5)
    algorithm = blo.SABA(lower_step=RHO, upper_step=GAMMA, upper_count=4, lower_count=6)
    state = algorithm.init(torch.as_tensor(theta), torch.as_tensor(z))
    low_order, up_order = [3, 0, 3, 5, 3, 0], [1, 1, 2, 0, 2, 2]
    batches = numbered(CASE, UPPER, up_order), numbered(CASE, LOWER, low_order)
    low_table, up_table = np.zeros((6, 13)), np.zeros((4, 8))

    for k, (i, j) in enumerate(zip(low_order, up_order, strict=True)):
        state = algorithm.step(state, quadratic.upper, quadratic.lower, *([b[k]] for b in batches))
        g, f = CASE.on(LOWER, [i]), CASE.on(UPPER, [j])
        new_low = np.concatenate([lower_gradients(g, theta, z)[1], g["H"] @ q, g["B"].T @ q])
        new_up = np.concatenate(upper_gradients(f, theta, z))
        low_direction = new_low - low_table[i] + low_table.mean(0)
        up_direction = new_up - up_table[j] + up_table.mean(0)
        low_table[i], up_table[j] = new_low, new_up
        theta = theta - gamma(k) * (up_direction[:3] - low_direction[10:])
        z = z - rho(k) * low_direction[:5]
        q = q - rho(k) * (low_direction[5:10] - up_direction[3:])
        for found, truth in ((state["theta"], theta), (state["z"], z), (state["memory"]["q"], q)):
            np.testing.assert_allclose(found.numpy(), truth, rtol=1e-12, atol=1e-12)


def test_saba_moves_along_the_full_directions_once_every_batch_was_seen_at_one_point() -> None:
    rng = np.random.default_rng(6)
    theta, z, q = (torch.as_tensor(rng.normal(size=size)) for size in (3, 5, 5))
    algorithm = blo.SABA(lower_step=0.5, upper_step=0.25, upper_count=4, lower_count=6)
    state = algorithm.init(theta, z)
    for k in range(8):
        # Whatever a step did to the variables is undone; the table stays.
        state = {**state, "theta": theta, "z": z, "memory": {**state["memory"], "q": q}}
        one = numbered(CASE, UPPER, [k % 4]), numbered(CASE, LOWER, [k % 6])
        before, state = state, algorithm.step(state, quadratic.upper, quadratic.lower, *one)
    del before
    state = {**state, "theta": theta, "z": z, "memory": {**state["memory"], "q": q}}
    for i, j in ((0, 0), (4, 2), (5, 3)):
        moved = algorithm.step(
            state, quadratic.upper, quadratic.lower, numbered(CASE, UPPER, [j]), numbered(CASE, LOWER, [i])
        )
        d_theta, d_z, d_q = full_directions(theta.numpy(), z.numpy(), q.numpy())
        np.testing.assert_allclose((theta - moved["theta"]) / 0.25, d_theta, atol=1e-12)
        np.testing.assert_allclose((z - moved["z"]) / 0.5, d_z, atol=1e-12)
        np.testing.assert_allclose((q - moved["memory"]["q"]) / 0.5, d_q, atol=1e-12)


def full_directions(theta: Array, z: Array, q: Array) -> tuple[Array, Array, Array]:
    m = CASE.mean
    direct, v = upper_gradients(m, theta, z)
    return direct - m["B"].T @ q, lower_gradients(m, theta, z)[1], m["H"] @ q - v
