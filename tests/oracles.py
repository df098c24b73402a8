"""Truth for the tests: lower problems whose solution and hypergradient NumPy and SciPy can tell exactly.

The lower problem is a strictly convex quadratic on one of four sets, which may move with theta:

    minimise 1/2 z' H(theta) z + z' b(theta)   over z in C(theta),
    H(theta) = A + exp(w . theta) diag(e),     b(theta) = B theta + c.

`solution` finds the active set by trying all of them, or the ball's multiplier by root finding. `jacobian`
differentiates the full KKT system, dense, with its multipliers as unknowns: none of the projectors,
curvatures and faces of the library appear. `central_difference` needs the solution alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls
from torch import Tensor

import blo

Array = NDArray[np.float64]
Kind = Literal["free", "box", "ball", "simplex"]
KINDS: tuple[Kind, ...] = ("free", "box", "ball", "simplex")


class Solution(NamedTuple):
    """A solution with its KKT system.

    The rows are the normals of the active constraints, each with its multiplier.

    Attributes:
        z: shape (n,).
        rows: shape (k, n).
        multipliers: shape (k,); those of inequalities are positive.
        bend: multiplier times second derivative of the active constraints, a multiple of the identity.
        margin: distance to the nearest point at which an inequality changes between active and inactive.
    """

    z: Array
    rows: Array
    multipliers: Array
    bend: float
    margin: float


@dataclass(frozen=True, eq=False)
class QuadraticCase:
    """A bilevel problem with a quadratic lower problem; n lower and m upper variables, all float64.

    The upper objective is `1/2 |z - target|^2 + theta' mixed z + 1/2 |theta|^2`. A set's parameter p is
    `p + slope theta`; the slopes are zero for a set that stays.

    Attributes:
        kind: the set.
        theta: the point at which the case keeps its margin from degeneracy, shape (m,).
        A, B, c, w, e: coefficients of the lower objective, shapes (n, n), (n, m), (n,), (m,), (n,).
        target, mixed: coefficients of the upper objective, shapes (n,), (m, n).
        low, high, center: shape (n,), with slopes of shape (n, m).
        size: radius of the ball or sum of the simplex, with a slope of shape (m,).
    """

    kind: Kind
    theta: Array
    A: Array
    B: Array
    c: Array
    w: Array
    e: Array
    target: Array
    mixed: Array
    low: Array
    high: Array
    center: Array
    size: float
    low_slope: Array
    high_slope: Array
    center_slope: Array
    size_slope: Array

    # The torch side: what is handed to the library.

    def objective(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the lower objective, a scalar."""
        linear = _torch(self.B) @ theta + _torch(self.c)
        curved = (_torch(self.w) @ theta).exp() * (_torch(self.e) * z * z).sum()
        return 0.5 * z @ _torch(self.A) @ z + 0.5 * curved + z @ linear

    def upper(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the upper objective, a scalar."""
        distance = z - _torch(self.target)
        return 0.5 * distance @ distance + theta @ _torch(self.mixed) @ z + 0.5 * theta @ theta

    def constraint(self, theta: Tensor) -> blo.Free | blo.Box | blo.L2Ball | blo.Simplex:
        """Return the set at theta, differentiable in theta."""
        size = self.size + _torch(self.size_slope) @ theta
        if self.kind == "box":
            low = _torch(self.low) + _torch(self.low_slope) @ theta
            return blo.Box(low, _torch(self.high) + _torch(self.high_slope) @ theta)
        if self.kind == "ball":
            return blo.L2Ball(size, _torch(self.center) + _torch(self.center_slope) @ theta)
        return blo.Simplex(size) if self.kind == "simplex" else blo.Free()

    def lower(self) -> blo.LowerProblem:
        """Return the lower problem."""
        return blo.LowerProblem(self.objective, self.constraint)

    def start(self) -> Tensor:
        """Return theta, shape (m,)."""
        return _torch(self.theta)

    def z0(self) -> Tensor:
        """Return a lower variable to start from, zeros of shape (n,)."""
        return torch.zeros(len(self.c), dtype=torch.float64)

    # The NumPy side: the truth.

    def hessian(self, theta: Array) -> Array:
        """Return H(theta), shape (n, n)."""
        return self.A + np.exp(self.w @ theta) * np.diag(self.e)

    def gradient(self, theta: Array, z: Array) -> Array:
        """Return the gradient of the lower objective in z, shape (n,)."""
        return self.hessian(theta) @ z + self.B @ theta + self.c

    def solve(self, theta: Array) -> Solution:
        """Return the exact solution with its active constraints."""
        H, b = self.hessian(theta), self.B @ theta + self.c
        size = self.size + float(self.size_slope @ theta)
        if self.kind == "box":
            low, high = self.low + self.low_slope @ theta, self.high + self.high_slope @ theta
            return _best(_box_candidates(H, b, low, high))
        if self.kind == "ball":
            return _solve_ball(H, b, self.center + self.center_slope @ theta, size)
        if self.kind == "simplex":
            return _best(_simplex_candidates(H, b, size))
        n = len(b)
        return Solution(np.linalg.solve(H, -b), np.zeros((0, n)), np.zeros(0), 0.0, np.inf)

    def solution(self, theta: Array) -> Array:
        """Return the lower solution, shape (n,)."""
        return self.solve(theta).z

    def jacobian(self, theta: Array) -> Array:
        """Return dz*/dtheta, shape (n, m), from the dense KKT system."""
        found = self.solve(theta)
        n, k = len(self.c), len(found.rows)
        # d/dtheta of the Lagrangian's gradient, and of the active constraints, at fixed z and multipliers.
        mixed = self.B + np.exp(self.w @ theta) * np.outer(self.e * found.z, self.w)
        moved = np.zeros((k, len(theta)))
        if self.kind == "box":
            for row, normal in enumerate(found.rows):
                i = int(np.abs(normal).argmax())
                moved[row] = -normal[i] * (self.low_slope[i] if normal[i] < 0 else self.high_slope[i])
        elif self.kind == "ball" and k:
            radius = self.size + float(self.size_slope @ theta)
            mixed = mixed - found.bend * self.center_slope
            moved[0] = -found.rows[0] @ self.center_slope - radius * self.size_slope
        elif self.kind == "simplex":
            moved[0] = -self.size_slope
        system = np.block(
            [[self.hessian(theta) + found.bend * np.eye(n), found.rows.T], [found.rows, np.zeros((k, k))]]
        )
        return np.linalg.solve(system, -np.vstack([mixed, moved]))[:n]

    def value(self, theta: Array) -> float:
        """Return F(theta), the upper objective at the lower solution."""
        z = self.solution(theta)
        distance = z - self.target
        return float(0.5 * distance @ distance + theta @ self.mixed @ z + 0.5 * theta @ theta)

    def direct(self, theta: Array) -> Array:
        """Return the direct part of the hypergradient, shape (m,)."""
        return self.mixed @ self.solution(theta) + theta

    def cotangent(self, theta: Array) -> Array:
        """Return the gradient of the upper objective in z at the solution, shape (n,)."""
        return self.solution(theta) - self.target + self.mixed.T @ theta

    def implicit(self, theta: Array) -> Array:
        """Return the implicit part of the hypergradient, shape (m,)."""
        return self.jacobian(theta).T @ self.cotangent(theta)

    def hypergradient(self, theta: Array) -> Array:
        """Return dF/dtheta, shape (m,)."""
        return self.direct(theta) + self.implicit(theta)

    def differences(self, theta: Array) -> Array:
        """Return dF/dtheta by central differences of the exactly re-solved problem, shape (m,)."""
        return central_difference(lambda at: np.array([self.value(at)]), theta)[0]

    def margin(self, theta: Array) -> float:
        """Return the distance to the nearest change of the active set, in units of z and of multipliers."""
        return self.solve(theta).margin


@dataclass(frozen=True, eq=False)
class BatchedCase:
    """Cases of one kind and shape that share theta, as one batched problem; the upper objectives add up."""

    cases: Sequence[QuadraticCase]

    @property
    def theta(self) -> Array:
        """The theta of the first case; the others keep their margin there too, if drawn by `draw_batch`."""
        return self.cases[0].theta

    def objective(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the lower objectives, shape (batch,)."""
        return torch.stack([case.objective(theta, row) for case, row in zip(self.cases, z, strict=True)])

    def upper(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the sum of the upper objectives, a scalar."""
        return sum((case.upper(theta, row) for case, row in zip(self.cases, z, strict=True)), _torch(np.zeros(())))

    def constraint(self, theta: Tensor) -> blo.Free | blo.Box | blo.L2Ball | blo.Simplex:
        """Return the sets at theta as one set with lanes."""
        sets = [case.constraint(theta) for case in self.cases]
        first = sets[0]
        if isinstance(first, blo.Free):
            return first
        names = {blo.Box: ("low", "high"), blo.L2Ball: ("radius", "center"), blo.Simplex: ("total",)}[type(first)]
        return type(first)(**{name: torch.stack([getattr(item, name) for item in sets]) for name in names})

    def lower(self) -> blo.LowerProblem:
        """Return the batched lower problem."""
        return blo.LowerProblem(self.objective, self.constraint, batched=True)

    def start(self) -> Tensor:
        """Return theta, shape (m,)."""
        return _torch(self.theta)

    def z0(self) -> Tensor:
        """Return zeros of shape (batch, n)."""
        return torch.stack([case.z0() for case in self.cases])

    def solution(self, theta: Array) -> Array:
        """Return the lower solutions, shape (batch, n)."""
        return np.stack([case.solution(theta) for case in self.cases])

    def implicit(self, theta: Array) -> Array:
        """Return the implicit part of the gradient of the sum, shape (m,)."""
        return np.sum([case.implicit(theta) for case in self.cases], axis=0)

    def hypergradient(self, theta: Array) -> Array:
        """Return the gradient of the sum of all F, shape (m,)."""
        return np.sum([case.hypergradient(theta) for case in self.cases], axis=0)


def draw(
    kind: Kind,
    n: int,
    m: int,
    seed: int,
    *,
    moving: bool = True,
    curved: bool = True,
    margin: float = 0.05,
    theta: Array | None = None,
) -> QuadraticCase:
    """Draw a case at least `margin` away from every degenerate one.

    Args:
        kind: the set.
        n: lower variables; at most 6, since all active sets are tried.
        m: upper variables.
        seed: decides everything.
        moving: let the set's parameters depend on theta.
        curved: let H depend on theta.
        margin: least slack of an inactive inequality and least multiplier of an active one.
        theta: the point, if it is to be a given one.
    """
    rng = np.random.default_rng(seed)
    while True:
        root = rng.normal(size=(n, n))
        pace = 0.2 if moving else 0.0
        case = QuadraticCase(
            kind=kind,
            theta=rng.normal(size=m) if theta is None else theta,
            A=root @ root.T / n + 0.5 * np.eye(n),
            B=rng.normal(size=(n, m)),
            c=rng.normal(size=n),
            w=0.3 * rng.normal(size=m),
            e=rng.uniform(0.0, 1.0, size=n) * curved,
            target=rng.normal(size=n),
            mixed=rng.normal(size=(m, n)),
            low=-rng.uniform(0.1, 1.0, size=n),
            high=rng.uniform(0.1, 1.0, size=n),
            center=0.3 * rng.normal(size=n) * moving,
            size=rng.uniform(0.5, 2.0),
            low_slope=pace * rng.normal(size=(n, m)),
            high_slope=pace * rng.normal(size=(n, m)),
            center_slope=pace * rng.normal(size=(n, m)),
            size_slope=pace * rng.normal(size=m),
        )
        gap = (case.high - case.low + (case.high_slope - case.low_slope) @ case.theta).min()
        size = case.size + case.size_slope @ case.theta
        if gap > 4 * margin and size > 4 * margin and case.margin(case.theta) > margin:
            return case


def draw_batch(kind: Kind, batch: int, n: int, m: int, seed: int, *, moving: bool = True) -> BatchedCase:
    """Draw `batch` cases that share theta and keep their margins there."""
    theta = np.random.default_rng(seed).normal(size=m)
    return BatchedCase([draw(kind, n, m, seed + 1 + i, moving=moving, theta=theta) for i in range(batch)])


def central_difference(function: Callable[[Array], Array], point: Array, step: float = 2e-3) -> Array:
    """Return the Jacobian of `function`, shape (outputs, inputs), by central differences of sixth order."""
    weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    columns = []
    for unit in np.eye(len(point)):
        pairs = ((w, function(point + k * step * unit), function(point - k * step * unit)) for k, w in weights.items())
        columns.append(sum(w * (ahead - behind) for w, ahead, behind in pairs) / step)
    return np.stack(columns, axis=-1)


def project_simplex(point: Array, total: float) -> Array:
    """Return the nearest point of the simplex, by root finding for the shift; shape (n,)."""
    shift = brentq(
        lambda t: np.maximum(point - t, 0).sum() - total,
        point.min() - 2 * total,
        point.max(),
        xtol=1e-15,
        rtol=1e-15,
    )
    support = point > shift
    return np.where(support, point - (point[support].sum() - total) / support.sum(), 0.0)


def project_capped_simplex(point: Array, total: float, cap: Array) -> Array:
    """Return the nearest point with `0 <= z <= cap` and this sum, by root finding for the shift; shape (n,)."""

    def at(shift: float) -> Array:
        found: Array = np.clip(point - shift, 0.0, cap)
        return found

    shift = brentq(
        lambda t: at(t).sum() - total, (point - cap).min() - 1e-9, point.max() + 1e-9, xtol=1e-15, rtol=1e-15
    )
    free = (at(shift) > 0) & (at(shift) < cap)
    if not free.any():
        return at(shift)
    return np.where(free, point + (total - at(shift)[~free].sum() - point[free].sum()) / free.sum(), at(shift))


def project_polyhedron(point: Array, A: Array, b: Array) -> Array:
    """Return the nearest point with `A z <= b`, by non-negative least squares; shape (n,).

    Source: Lawson and Hanson (1974), Solving least squares problems, chapter 23, least distance programming.
    """
    n = len(point)
    E, f = np.vstack([-A.T, (A @ point - b)[None]]), np.zeros(n + 1)
    f[n] = 1.0
    u, _ = nnls(E, f, maxiter=1000)
    residual = E @ u - f
    held = u > 0  # once more on the planes that hold, which leaves less rounding
    near = point - residual[:n] / residual[n]
    return near - np.linalg.pinv(A[held]) @ (A[held] @ near - b[held]) if held.any() else point


def _equality_solve(H: Array, b: Array, rows: Array, values: Array) -> tuple[Array, Array]:
    """Return minimiser and multipliers of the quadratic on `rows z = values`."""
    k = len(rows)
    system = np.block([[H, rows.T], [rows, np.zeros((k, k))]])
    found = np.linalg.solve(system, np.concatenate([-b, values]))
    return found[: len(b)], found[len(b) :]


def _box_candidates(H: Array, b: Array, low: Array, high: Array) -> Iterator[Solution]:
    for sides in itertools.product((0, -1, 1), repeat=len(b)):
        side = np.array(sides)
        held = np.flatnonzero(side)
        rows = np.diag(side.astype(np.float64))[held]
        z, multipliers = _equality_solve(H, b, rows, np.where(side > 0, high, -low)[held])
        room = np.minimum(z - low, high - z)[side == 0]
        yield Solution(z, rows, multipliers, 0.0, float(np.concatenate([room, multipliers]).min()))


def _simplex_candidates(H: Array, b: Array, total: float) -> Iterator[Solution]:
    n = len(b)
    for flags in itertools.product((False, True), repeat=n):
        support = np.array(flags)
        if support.any():
            rows = np.vstack([np.ones(n), -np.eye(n)[~support]])
            values = np.concatenate([[total], np.zeros(n - support.sum())])
            z, multipliers = _equality_solve(H, b, rows, values)
            yield Solution(z, rows, multipliers, 0.0, float(np.concatenate([z[support], multipliers[1:]]).min()))


def _best(candidates: Iterator[Solution]) -> Solution:
    # Of a strictly convex problem exactly one candidate is feasible with multipliers of the right sign.
    return max(candidates, key=lambda candidate: candidate.margin)


def _solve_ball(H: Array, b: Array, center: Array, radius: float) -> Solution:
    values, vectors = np.linalg.eigh(H)
    force = vectors.T @ (b + H @ center)

    def excess(mu: float) -> float:
        return float(np.linalg.norm(force / (values + mu)) - radius)

    if excess(0.0) <= 0:
        z = center - vectors @ (force / values)
        return Solution(z, np.zeros((0, len(b))), np.zeros(0), 0.0, -excess(0.0))
    mu = brentq(excess, 0.0, np.linalg.norm(force) / radius, xtol=1e-15, rtol=1e-15)
    offset = -vectors @ (force / (values + mu))
    return Solution(center + offset, offset[None], np.array([mu]), mu, mu * radius)


def _torch(array: Array) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float64)
