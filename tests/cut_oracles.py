"""Truth for balls cut by bounds: bisection in extended precision, and optimality systems solved by Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.oracles import Array

if TYPE_CHECKING:
    from tests.term_oracles import Face, TermCase


def project(point: Array, radius: Array, center: Array, low: Array, high: Array, norm: int) -> Array:
    """Return the nearest point of the ball within the bounds, by bisection for the ball's multiplier; shape (n,)."""
    z, c, lower, upper = (np.asarray(value, dtype=np.longdouble) for value in (point, center, low, high))

    def at(mu: Any) -> Any:
        shrunk = c + np.sign(z - c) * np.maximum(np.abs(z - c) - mu, 0)
        free = (z + mu * c) / (1 + mu) if norm == 2 else shrunk
        return np.minimum(np.maximum(free, lower), upper)

    def length(x: Any) -> Any:
        return np.sqrt(((x - c) ** 2).sum()) if norm == 2 else np.abs(x - c).sum()

    if length(at(np.longdouble(0))) <= radius:
        return at(np.longdouble(0)).astype(np.float64)
    few, many = np.longdouble(0), np.longdouble(1e-3)
    while length(at(many)) > radius and many < 1e30:
        many *= 2
    while few < (mu := (few + many) / 2) < many:
        few, many = (mu, many) if length(at(mu)) > radius else (few, mu)
    return at(many).astype(np.float64)


def cut_parameters(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """Return a ball that the bounds cut, its centre not always between them."""
    return {
        "radius": np.array(rng.uniform(0.3, 0.9)),
        "center": 0.15 * rng.normal(size=n),
        "low": -rng.uniform(0.05, 0.6, size=n),
        "high": rng.uniform(0.05, 0.6, size=n),
    }


def cut_faces(norm: int, face: Callable[..., Face]) -> Callable[[TermCase, Array], Iterator[Face]]:
    """Return what yields the face on which projected gradient steps end."""

    def faces(case: TermCase, theta: Array) -> Iterator[Face]:
        n, p, H = case.n, case.at(theta), case.quadratic.hessian(theta)
        z = p["center"]
        step = 2 / sum(np.linalg.eigvalsh(H)[[0, -1]])
        for _ in range(2000):
            z, before = project(z - step * case.slope(theta, z), **p, norm=norm), z
            if np.abs(z - before).max() < 1e-8:
                break
        side = np.where(z - p["low"] < 1e-6, -1, np.where(p["high"] - z < 1e-6, 1, 0))
        offset = z - p["center"]
        on = bool((np.linalg.norm(offset, norm)) > p["radius"] - 1e-6)
        still = (side == 0) & (np.abs(offset) < 1e-6) & on & (norm == 1)
        s = np.where(still, 0.0, np.sign(offset))
        free = (side == 0) & ~still

        def pull(p: Any, z: Any) -> Any:
            return s if norm == 1 else z - p["center"]

        def system(theta: Any, x: Any) -> Any:
            p, z, y = case.at(theta), x[:n], x[n]
            stationary = case.slope(theta, z) + y * pull(p, z)
            held = np.where(side < 0, z - p["low"], np.where(side > 0, z - p["high"], z - p["center"]))
            gap = z - p["center"]
            ball = (s * gap).sum() - p["radius"] if norm == 1 else (gap * gap).sum() - p["radius"] * p["radius"]
            return np.concatenate([np.where(free, stationary, held), [ball if on else y]])

        def margin(x: Array) -> float:
            p, z, y = case.at(theta), x[:n], x[n]
            slope, gap = case.slope(theta, z), z - p["center"]
            force = side * -(slope + y * pull(p, z))
            rooms = [np.minimum(z - p["low"], p["high"] - z)[side == 0], force[side != 0], p["high"] - p["low"]]
            rooms.append([y if on else p["radius"] - np.linalg.norm(gap, norm)])
            if norm == 1 and on:
                rooms += [(s * gap)[s != 0], (y - np.abs(slope))[still], [float(free.any()) - 0.5]]
            elif on:
                rooms.append([np.linalg.norm(gap[free]) - 0.1])
            least = np.concatenate(rooms).min()
            # Only what the ball and a bound hold together is of use; each alone is another set.
            return float(least) if np.isfinite(least) and on and side.any() and free.sum() > 1 else -np.inf

        along, slope = pull(p, z)[free], case.slope(theta, z)[free]
        yield face(system, np.append(z, -on * (along @ slope) / max(along @ along, 1e-9)), margin)

    return faces
