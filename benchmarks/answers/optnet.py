"""A layer that solves a quadratic program, for a batch of inputs; all its coefficients are learned.

    z_i = argmin  1/2 z' (R R' + 0.1 I) z + (P x_i)' z   over  G z <= h,  or over  G z = h

Truth: the dual by SciPy's non-negative least squares, then the dense KKT system of the active rows in NumPy.
Source: Amos and Kolter, ICML 2017 (OptNet).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.registry import Outcome, Setting, benchmark

Array = npt.NDArray[np.float64]
RATE, STEPS = 1e-3, 3


class Layer(NamedTuple):
    """Coefficients: R (n, n), P (n, inputs), G (k, n), h (k,)."""

    r: Array
    p: Array
    g: Array
    h: Array


class Data(NamedTuple):
    """Inputs of shape (samples, inputs), wanted outputs of shape (samples, n)."""

    x: Array
    y: Array


def draw(setting: Setting) -> tuple[Layer, Data]:
    """Draw a layer for which z = 0 is feasible, and data."""
    n, k, samples, inputs = (4, 2, 3, 3) if setting.quick else (20, 10, 16, 5)
    random = np.random.default_rng(setting.seed)
    layer = Layer(
        random.normal(size=(n, n)) / n**0.5,
        random.normal(size=(n, inputs)),
        random.normal(size=(k, n)),
        random.uniform(0.1, 1.0, size=k),
    )
    return layer, Data(random.normal(size=(samples, inputs)), random.normal(size=(samples, n)))


def problem(
    layer: Layer, data: Data, feasible: type[blo.Halfspaces | blo.Affine], device: torch.device
) -> dict[str, Any]:
    """State the problem as arguments for blo."""
    x, y = (torch.as_tensor(part, device=device) for part in data)
    theta = {name: torch.as_tensor(part, device=device) for name, part in layer._asdict().items()}

    def program(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        bent = 0.5 * (z @ theta["r"]).square().sum(1) + 0.05 * z.square().sum(1)
        return bent + (z * (x @ theta["p"].T)).sum(1)

    return {
        "upper": lambda theta, z: (z - y).square().sum(1).mean(),
        "lower": blo.LowerProblem(program, lambda theta: feasible(theta["g"], theta["h"]), batched=True),
        "theta": theta,
        "z0": torch.zeros_like(y),
    }


def truth(layer: Layer, data: Data, equations: bool) -> tuple[float, Layer]:
    """Return the loss and its gradient in each coefficient.

    Raises:
        RuntimeError: if the KKT conditions do not hold with a margin.
    """
    q = layer.r @ layer.r.T + 0.1 * np.eye(len(layer.r))
    root = np.linalg.cholesky(q)
    across = np.linalg.solve(root, layer.g.T)  # the dual's Hessian is across' across
    loss, slope = 0.0, Layer(*(np.zeros_like(part) for part in layer))
    for x, y in zip(*data, strict=True):
        p = layer.p @ x
        active = np.ones(len(layer.h), dtype=bool)
        if not equations:
            right = np.linalg.lstsq(across.T, -layer.h - across.T @ np.linalg.solve(root, p), rcond=None)[0]
            active = nnls(across, right)[0] > 0
        g, k = layer.g[active], int(active.sum())
        system = np.block([[q, g.T], [g, np.zeros((k, k))]])
        z, multipliers = np.split(np.linalg.solve(system, np.concatenate([-p, layer.h[active]])), [len(p)])
        room = (layer.h - layer.g @ z)[~active]
        if not equations and np.concatenate([room, multipliers]).min(initial=1.0) < 1e-5:
            raise RuntimeError("the active rows are not certain; the truth is not known.")
        v = 2 * (z - y) / len(data.y)
        u, w = np.split(np.linalg.solve(system, np.concatenate([v, np.zeros(k)])), [len(p)])
        loss += float((z - y) @ (z - y)) / len(data.y)
        slope.r[:] -= (np.outer(u, z) + np.outer(z, u)) @ layer.r
        slope.p[:] -= np.outer(u, x)
        slope.g[active] -= np.outer(multipliers, u) + np.outer(w, z)
        slope.h[active] += w
    return loss, slope


@benchmark("answer-optnet", "A layer that solves a quadratic program, against its dense KKT system")
def run(setting: Setting) -> Outcome:
    start, data = draw(setting)
    answers = Answers()
    sets: tuple[tuple[str, type[blo.Halfspaces | blo.Affine]], ...]
    sets = (("inequalities", blo.Halfspaces), ("equations", blo.Affine))
    for name, feasible in sets:
        layer = start
        given = problem(layer, data, feasible, setting.device)
        value, slope = truth(layer, data, feasible is blo.Affine)
        at = blo.value_and_hypergrad(**given)
        answers.add(f"{name}: loss", at.value, value)
        for part, found in at.grad.items():
            answers.add(f"{name}: gradient in {part}", found, getattr(slope, part))
        fitted = blo.fit(**given, optimizer=partial(torch.optim.SGD, lr=RATE), steps=STEPS)
        for _ in range(STEPS):
            _, slope = truth(layer, data, feasible is blo.Affine)
            layer = Layer(*(part - RATE * down for part, down in zip(layer, slope, strict=True)))
        for part in ("g", "h"):
            answers.add(f"{name}: {part} after {STEPS} steps", numpy(fitted.theta[part]), getattr(layer, part))
    return answers.outcome("OptNet layer")
