"""A finite sum of quadratics, whose every derivative and whose bilevel optimum are written out in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracles import Array

LOWER = ("H", "B", "c")
UPPER = ("P", "d", "Q", "e", "R")


@dataclass(frozen=True)
class Quadratic:
    """`lower_i = z'H_i z/2 + z'B_i theta + c_i'z`, `upper_j = z'P_j z/2 + d_j'z + theta'Q_j theta/2 + e_j'theta +
    theta'R_j z`; the curvature of the mean lower objective lies between 1 and about 3.
    """

    parts: dict[str, Array]

    @classmethod
    def draw(cls, seed: int = 0, n: int = 5, p: int = 3, lower_count: int = 6, upper_count: int = 4) -> Quadratic:
        rng = np.random.default_rng(seed)

        def square(count: int, size: int, shift: float) -> Array:
            roots = rng.normal(size=(count, size, size)) / np.sqrt(size)
            return roots @ roots.transpose(0, 2, 1) / 2 + shift * np.eye(size)

        parts = {
            "H": square(lower_count, n, 1.0),
            "B": rng.normal(size=(lower_count, n, p)) / 2,
            "c": rng.normal(size=(lower_count, n)),
            "P": square(upper_count, n, 0.0),
            "d": rng.normal(size=(upper_count, n)),
            "Q": square(upper_count, p, 2.0),
            "e": rng.normal(size=(upper_count, p)),
            "R": rng.normal(size=(upper_count, p, n)) / 4,
        }
        return cls(parts)

    def on(self, names: Iterable[str], rows: slice | list[int]) -> dict[str, Array]:
        """Return the mean of some examples."""
        return {name: self.parts[name][rows].mean(0) for name in names}

    @property
    def mean(self) -> dict[str, Array]:
        return self.on([*LOWER, *UPPER], slice(None))

    def optimum(self, inverse: Array | None = None, weight: float | None = None) -> tuple[Array, Array]:
        """Return theta and z where the bilevel gradient is zero.

        Args:
            inverse: what an algorithm puts in the place of the inverse of H in the adjoint.
            weight: instead, the optimum of the penalised problem with this weight on g.
        """
        m = self.mean
        H, B, c, P, d, Q, e, R = (m[name] for name in (*LOWER, *UPPER))
        n, p = B.shape
        if weight is not None:
            # Unknowns theta, y, z: d/dtheta = 0, d/dy (f + weight g) = 0, dg/dz = 0.
            system = np.block(
                [
                    [Q, R + weight * B.T, -weight * B.T],
                    [R.T + weight * B, P + weight * H, np.zeros((n, n))],
                    [B, np.zeros((n, n)), H],
                ]
            )
            found = np.linalg.solve(system, -np.concatenate([e, d + weight * c, c]))
            return found[:p], found[p + n :]
        adjoint = B.T @ (np.linalg.inv(H) if inverse is None else inverse)
        system = np.block([[Q - adjoint @ R.T, R - adjoint @ P], [B, H]])
        found = np.linalg.solve(system, -np.concatenate([e - adjoint @ d, c]))
        return found[:p], found[p:]

    def batches(
        self, names: Iterable[str], rows: Iterable[list[int]], dtype: torch.dtype = torch.float64
    ) -> list[dict[str, Tensor]]:
        """Return the examples of each list of rows as one batch."""
        names = list(names)
        return [{name: torch.as_tensor(self.parts[name][list(r)], dtype=dtype) for name in names} for r in rows]

    def full(self) -> tuple[list[Any], list[Any]]:
        """Return one batch of each objective with all examples, enough for any step."""
        lower, upper = (self.batches(names, [range(len(self.parts[names[0]]))]) for names in (LOWER, UPPER))  # type: ignore[arg-type]
        return upper * 500, lower * 500


def lower(theta: Tensor, z: Tensor, batch: dict[str, Tensor]) -> Tensor:
    m = {name: value.mean(0) for name, value in batch.items()}
    return z @ m["H"] @ z / 2 + z @ m["B"] @ theta + m["c"] @ z


def upper(theta: Tensor, z: Tensor, batch: dict[str, Tensor]) -> Tensor:
    m = {name: value.mean(0) for name, value in batch.items()}
    return z @ m["P"] @ z / 2 + m["d"] @ z + theta @ m["Q"] @ theta / 2 + m["e"] @ theta + theta @ m["R"] @ z


def lower_gradients(m: dict[str, Array], theta: Array, z: Array) -> tuple[Array, Array]:
    return m["B"].T @ z, m["H"] @ z + m["B"] @ theta + m["c"]


def upper_gradients(m: dict[str, Array], theta: Array, z: Array) -> tuple[Array, Array]:
    return m["Q"] @ theta + m["e"] + m["R"] @ z, m["P"] @ z + m["d"] + m["R"].T @ theta


class Source:
    """Batches for the code and their means for NumPy, in one random order; counts what the code took."""

    def __init__(self, case: Quadratic, names: tuple[str, ...], seed: int, size: int = 2) -> None:
        rng = np.random.default_rng(seed)
        count = len(case.parts[names[0]])
        self.rows = [list(rng.choice(count, size, replace=False)) for _ in range(200)]
        self.taken = 0
        self._batches = case.batches(names, self.rows)
        self._means = iter([case.on(names, rows) for rows in self.rows])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.taken += 1
        return self._batches[self.taken - 1]

    def mean(self) -> dict[str, Array]:
        """Return the next batch's matrices, for the copy of the step in NumPy."""
        return next(self._means)
