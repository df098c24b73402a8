"""Truth for penalties and for sets with general faces: optimality systems solved by Newton's method in NumPy.

The lower problem is the quadratic of `tests.oracles` plus a term whose parameters may depend on theta. Each kind lists
candidate faces. A face is a square system `R(theta, x) = 0` in x, which starts with z and ends with multipliers, and a
margin that is positive exactly when x solves the lower problem. Systems are analytic, so that their derivatives are
exact by the complex step `Im R(x + ih) / h`, and the derivative of the solution is `-R_x^-1 R_theta`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import blo
from tests import cut_oracles, oracles
from tests.oracles import Array, QuadraticCase, central_difference

System = Callable[[Any, Any], Any]


class Face(NamedTuple):
    """A system, where to start Newton's method, and the margin of a solution from the nearest degenerate point."""

    system: System
    start: Array
    margin: Callable[[Array], float]


@dataclass(frozen=True, eq=False)
class TermCase:
    """A quadratic with a term; the interface of `QuadraticCase`.

    Attributes:
        kind: a key of `KINDS`.
        quadratic: the objectives.
        theta: the point at which the case keeps its margin, shape (m,).
        parameters: value and slope of each parameter p: `p + slope theta`, the slope having one more axis.
    """

    kind: str
    quadratic: QuadraticCase
    theta: Array
    parameters: dict[str, tuple[Array, Array]]

    # The torch side.

    @property
    def c(self) -> Array:
        return self.quadratic.c

    def objective(self, theta: Tensor, z: Tensor) -> Tensor:
        return self.quadratic.objective(theta, z)

    def upper(self, theta: Tensor, z: Tensor) -> Tensor:
        return self.quadratic.upper(theta, z)

    def torch_parameters(self, theta: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.as_tensor(value) + torch.as_tensor(slope) @ theta
            for name, (value, slope) in self.parameters.items()
        }

    def term(self, theta: Tensor) -> Any:
        """Return the library's term at theta."""
        return KINDS[self.kind].term(self.torch_parameters(theta), len(self.c))

    def lower(self) -> blo.LowerProblem:
        if KINDS[self.kind].is_penalty:
            return blo.LowerProblem(self.objective, penalty=self.term)
        return blo.LowerProblem(self.objective, constraint=self.term)

    def scaled(self, scale: float) -> blo.LowerProblem:
        """Return the lower problem with objective and penalty multiplied by a number."""
        parameters = KINDS[self.kind].scaled

        def term(theta: Tensor) -> Any:
            found = self.torch_parameters(theta)
            # The penalties' parameters are logarithms.
            return KINDS[self.kind].term({k: v + np.log(scale) * (k in parameters) for k, v in found.items()}, self.n)

        def objective(theta: Tensor, z: Tensor) -> Tensor:
            return scale * self.objective(theta, z)

        if KINDS[self.kind].is_penalty:
            return blo.LowerProblem(objective, penalty=term)
        return blo.LowerProblem(objective, constraint=term)

    @property
    def n(self) -> int:
        return len(self.c)

    def start(self) -> Tensor:
        return torch.as_tensor(self.theta)

    def z0(self) -> Tensor:
        """Return where to start: at zero, or at the solution where each step takes a projection by iteration."""
        if KINDS[self.kind].slow:
            return torch.as_tensor(self.solution(self.theta))
        return torch.zeros(len(self.c), dtype=torch.float64)

    # The NumPy side.

    def at(self, theta: Any) -> dict[str, Any]:
        return {name: value + slope @ theta for name, (value, slope) in self.parameters.items()}

    def slope(self, theta: Any, z: Any) -> Any:
        return self.quadratic.gradient(theta, z)

    def solve(self, theta: Array) -> tuple[Array, Face]:
        """Return x and the face of the one candidate that solves the problem."""
        with np.errstate(all="ignore"):  # wrong faces may have their solutions far away
            found = [(newton(face, theta), face) for face in KINDS[self.kind].faces(self, theta)]
            return max(found, key=lambda pair: pair[1].margin(pair[0]))

    def solution(self, theta: Array) -> Array:
        return self.solve(theta)[0][: len(self.c)]

    def margin(self, theta: Array) -> float:
        x, face = self.solve(theta)
        return face.margin(x)

    def held(self, theta: Array) -> bool:
        """Tell whether the term holds z in some direction or bends its face."""
        x, face = self.solve(theta)
        unheld = complex_step(lambda at: self.slope(theta, at), x[: self.n])
        system = complex_step(lambda at: face.system(theta, at), x)
        return system.shape != unheld.shape or not np.allclose(system, unheld)

    def jacobian(self, theta: Array) -> Array:
        x, face = self.solve(theta)
        in_x = complex_step(lambda at: face.system(theta, at), x)
        in_theta = complex_step(lambda at: face.system(at, x), theta)
        return -np.linalg.solve(in_x, in_theta)[: len(self.c)]

    def value(self, theta: Array) -> float:
        z, q = self.solution(theta), self.quadratic
        return float(0.5 * (z - q.target) @ (z - q.target) + theta @ q.mixed @ z + 0.5 * theta @ theta)

    def hypergradient(self, theta: Array) -> Array:
        z, q = self.solution(theta), self.quadratic
        return q.mixed @ z + theta + self.jacobian(theta).T @ (z - q.target + q.mixed.T @ theta)

    def differences(self, theta: Array) -> Array:
        return central_difference(lambda at: np.array([self.value(at)]), theta)[0]


def complex_step(function: Callable[[Any], Any], point: Array) -> Array:
    """Return the Jacobian of an analytic function, exact to rounding."""
    columns = [function(point + 1e-30j * unit).imag / 1e-30 for unit in np.eye(len(point))]
    return np.stack(columns, axis=-1)


def newton(face: Face, theta: Array, steps: int = 30) -> Array:
    """Return the solution of a face's system; NaN where there is none."""
    x = face.start
    for _ in range(steps):
        residual = face.system(theta, x)
        try:
            move = np.linalg.solve(complex_step(lambda at: face.system(theta, at), x), residual)
        except np.linalg.LinAlgError:
            return np.full_like(x, np.nan)
        x = x - move
        if not np.isfinite(x).all() or np.abs(move).max(initial=0.0) <= 1e-14 * (1 + np.abs(x).max()):
            break
    good = np.isfinite(x).all() and np.abs(face.system(theta, x)).max() <= 1e-9
    return x if good else np.full_like(x, np.nan)


def finite(margin: float) -> float:
    return -np.inf if np.isnan(margin) else float(margin)


@dataclass(frozen=True)
class Kind:
    """A kind of term.

    Attributes:
        draw: `(rng, n)` -> its parameters.
        term: (parameters, n) -> the library's term.
        faces: candidates for the face at the solution.
        is_penalty: whether it is one.
        scaled: the parameters that are logarithms of weights.
        slow: whether its projections are iterations.
    """

    draw: Callable[[np.random.Generator, int], dict[str, Array]]
    term: Callable[[dict[str, Tensor], int], Any]
    faces: Callable[[TermCase, Array], Iterator[Face]]
    is_penalty: bool = False
    scaled: tuple[str, ...] = ("weight", "ridge")
    slow: bool = False


# Penalties: every support with every sign.


def sparse_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    n = len(case.c)
    p = case.at(theta)
    for signs in itertools.product((0.0, -1.0, 1.0), repeat=n):
        s = np.array(signs)

        def system(theta: Any, z: Any, s: Array = s) -> Any:
            p = case.at(theta)
            slope = case.slope(theta, z) + np.exp(p["weight"]) * s + np.exp(p.get("ridge", -np.inf)) * z
            return np.where(s != 0, slope, z)

        def margin(z: Array, s: Array = s) -> float:
            room = np.where(s != 0, s * z, np.exp(p["weight"]) - np.abs(case.slope(theta, z)))
            return finite(room.min())

        yield Face(system, np.zeros(n), margin)


GROUPS = np.array([0, 1, 0, -1, 1, 2])


def group_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    n = len(case.c)
    groups = GROUPS[:n]
    names = [g for g in np.unique(groups) if g >= 0]
    p = np.exp(case.at(theta)["weight"])

    def norm(z: Any) -> Any:
        return np.sqrt((z * z).sum())

    # By proximal gradient steps, which find the support but take long to find the solution.
    z = np.zeros(n)
    step = 1 / np.linalg.norm(case.quadratic.hessian(theta), 2)
    for _ in range(2000):
        z = z - step * case.slope(theta, z)
        for g in names:
            length = norm(z[groups == g])
            z[groups == g] *= max(0.0, 1 - step * p[g] / length) if length else 0.0
    on = [g for g in names if norm(z[groups == g]) > 1e-6]

    def system(theta: Any, z: Any) -> Any:
        weight = np.exp(case.at(theta)["weight"])
        found = case.slope(theta, z) + 0.0
        for g in names:
            block = groups == g
            found[block] = found[block] + weight[g] * z[block] / norm(z[block]) if g in on else z[block]
        return found

    def margin(z: Array) -> float:
        slope = case.slope(theta, z)
        blocks = {g: groups == g for g in names}
        room = [norm(z[blocks[g]]) if g in on else p[g] - norm(slope[blocks[g]]) for g in names]
        return finite(min(room, default=np.inf))

    yield Face(system, np.where(np.isin(groups, [*on, -1]), z, 0.0), margin)


# Sets: the multipliers are unknowns, one for each row of the face.


def row_faces(
    case: TermCase,
    theta: Array,
    rows: Callable[[Any], tuple[Any, Any]],
    choices: Iterator[tuple[int, ...]],
    equalities: int = 0,
) -> Iterator[Face]:
    """Yield the faces of `A z <= b` on which the chosen rows hold with equality; the first rows always do."""
    n = case.n

    for choice in choices:
        picked = [*range(equalities), *choice]
        if len(picked) > n:
            continue

        def system(theta: Any, x: Any, picked: list[int] = picked) -> Any:
            A, b = rows(theta)
            z, y = x[:n], x[n:]
            return np.concatenate([case.slope(theta, z) + A[picked].T @ y, A[picked] @ z - b[picked]])

        def margin(x: Array, picked: list[int] = picked) -> float:
            A, b = rows(theta)
            rest = [i for i in range(len(b)) if i not in picked]
            return finite(np.concatenate([x[n + equalities :], (b - A @ x[:n])[rest]]).min(initial=np.inf))

        yield Face(system, np.zeros(n + len(picked)), margin)


def affine_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    def rows(theta: Any) -> tuple[Any, Any]:
        p = case.at(theta)
        return p["A"], p["b"]

    return row_faces(case, theta, rows, iter([()]), equalities=len(case.at(theta)["b"]))


def halfspace_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    k = len(case.at(theta)["b"])
    choices = (choice for size in range(k + 1) for choice in itertools.combinations(range(k), size))

    def rows(theta: Any) -> tuple[Any, Any]:
        p = case.at(theta)
        return p["A"], p["b"]

    return row_faces(case, theta, rows, choices)


def capped_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    n = case.n
    sides = itertools.product((None, 0, n), repeat=n)  # of each coordinate: free, at zero, at its cap
    choices = (tuple(i + side for i, side in enumerate(one) if side is not None) for one in sides)

    def rows(theta: Any) -> tuple[Any, Any]:
        p = case.at(theta)
        A = np.vstack([np.ones(n), -np.eye(n), np.eye(n)])
        return A, np.concatenate([p["total"][None], np.zeros(n), p["cap"]])

    return row_faces(case, theta, rows, (tuple(1 + i for i in choice) for choice in choices), equalities=1)


def l1_ball_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    """Yield the inside, and every pattern of signs: `s (z - c) = r` with `z = c` where s is zero."""
    n = case.n
    p = case.at(theta)
    yield Face(
        lambda theta, z: case.slope(theta, z),
        np.zeros(n),
        lambda z: finite(p["radius"] - np.abs(z - p["center"]).sum()),
    )
    for signs in itertools.product((0.0, -1.0, 1.0), repeat=n):
        s = np.array(signs)
        if not s.any():
            continue

        def system(theta: Any, x: Any, s: Array = s) -> Any:
            p = case.at(theta)
            z, y = x[:n], x[n]
            stationary = np.where(s != 0, case.slope(theta, z) + y * s, z - p["center"])
            return np.concatenate([stationary, [s @ (z - p["center"]) - p["radius"]]])

        def margin(x: Array, s: Array = s) -> float:
            z, y = x[:n], x[n]
            return finite(min(np.where(s != 0, s * (z - p["center"]), y - np.abs(case.slope(theta, z))).min(), y))

        yield Face(system, np.zeros(n + 1), margin)


# Smooth constraints: an equation, an ellipsoid and a bound on a sum of exponentials.


def curved_equation(p: dict[str, Any], z: Any, exp: Callable[[Any], Any]) -> Any:
    return (p["normal"] * z).sum() + 0.05 * (z**3).sum() - p["level"]


def ellipsoid(p: dict[str, Any], z: Any, exp: Callable[[Any], Any]) -> Any:
    return 0.5 * (exp(p["axes"]) * (z - p["center"]) ** 2).sum() - exp(p["size"])


def exponentials(p: dict[str, Any], z: Any, exp: Callable[[Any], Any]) -> Any:
    return exp(p["rate"] * z).sum() - exp(p["cap"])


def smooth_faces(case: TermCase, theta: Array) -> Iterator[Face]:
    """Yield the face that SciPy's solver ends on."""
    n = case.n
    functions = [curved_equation] * ("normal" in case.parameters) + [ellipsoid, exponentials]
    equalities = len(functions) - 2

    def values(theta: Any, z: Any) -> Any:
        p = case.at(theta)
        return np.stack([function(p, z, np.exp) for function in functions])

    def slopes(theta: Any, z: Any) -> Any:
        # Written out, since the complex step is taken in z already.
        p = case.at(theta)
        rows = [np.exp(p["axes"]) * (z - p["center"]), p["rate"] * np.exp(p["rate"] * z)]
        return np.stack([p["normal"] + 0.15 * z**2, *rows] if equalities else rows)

    H, b = case.quadratic.hessian(theta), case.slope(theta, np.zeros(n))
    found = scipy.optimize.minimize(
        lambda z: 0.5 * z @ H @ z + b @ z,
        case.at(theta)["center"],
        jac=lambda z: H @ z + b,
        method="SLSQP",
        constraints=[
            {"type": kind, "fun": lambda z, k=k: -values(theta, z)[k], "jac": lambda z, k=k: -slopes(theta, z)[k]}
            for k, kind in enumerate(["eq"] * equalities + ["ineq"] * 2)
        ],
        options={"ftol": 1e-14, "maxiter": 300},
    )
    picked = [k for k in range(len(functions)) if k < equalities or values(theta, found.x)[k] > -1e-5]
    start = -np.linalg.lstsq(slopes(theta, found.x)[picked].T, case.slope(theta, found.x), rcond=None)[0]

    def system(theta: Any, x: Any) -> Any:
        z, y = x[:n], x[n:]
        return np.concatenate([case.slope(theta, z) + slopes(theta, z)[picked].T @ y, values(theta, z)[picked]])

    def margin(x: Array) -> float:
        rest = [k for k in range(len(functions)) if k not in picked]
        return finite(np.concatenate([x[n + equalities :], -values(theta, x[:n])[rest]]).min(initial=np.inf))

    yield Face(system, np.concatenate([found.x, start]), margin)


def smooth_parameters(rng: np.random.Generator, n: int) -> dict[str, Array]:
    return {
        "center": 0.2 * rng.normal(size=n),
        "axes": 0.5 * rng.normal(size=n),
        "size": np.array(rng.uniform(-2.0, -0.5)),
        "rate": rng.normal(size=n),
        "cap": np.array(np.log(n) + rng.uniform(-0.1, 0.3)),
    }


def smooth_term(p: dict[str, Tensor], n: int) -> blo.SmoothConstraints:
    batched = p["center"].ndim > 1

    def equalities(p: dict[str, Tensor], z: Tensor) -> Tensor:
        return curved_equation(p, z, torch.exp)

    def inequalities(p: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.stack([ellipsoid(p, z, torch.exp), exponentials(p, z, torch.exp)], -1)

    return blo.SmoothConstraints(
        (torch.vmap(equalities) if batched else equalities) if "normal" in p else None,
        torch.vmap(inequalities) if batched else inequalities,
        theta=p,
    )


KINDS: dict[str, Kind] = {
    "l1": Kind(
        lambda rng, n: {"weight": rng.normal(size=n) - 0.5},
        lambda p, n: blo.L1(p["weight"].exp()),
        sparse_faces,
        is_penalty=True,
    ),
    "elastic net": Kind(
        lambda rng, n: {"weight": rng.normal(size=n) - 0.5, "ridge": rng.normal(size=n)},
        lambda p, n: blo.ElasticNet(p["weight"].exp(), p["ridge"].exp()),
        sparse_faces,
        is_penalty=True,
    ),
    "group lasso": Kind(
        lambda rng, n: {"weight": rng.normal(size=3) - 0.2},
        lambda p, n: blo.GroupLasso(p["weight"].exp(), torch.as_tensor(GROUPS[:n])),
        group_faces,
        is_penalty=True,
    ),
    "l1 ball": Kind(
        lambda rng, n: {"radius": np.array(rng.uniform(0.3, 1.0)), "center": 0.3 * rng.normal(size=n)},
        lambda p, n: blo.L1Ball(p["radius"], p["center"]),
        l1_ball_faces,
    ),
    "capped simplex": Kind(
        lambda rng, n: {"total": np.array(rng.uniform(0.5, 1.0)), "cap": rng.uniform(0.2, 0.6, size=n)},
        lambda p, n: blo.Simplex(p["total"], p["cap"]),
        capped_faces,
    ),
    "cut l2 ball": Kind(
        cut_oracles.cut_parameters,
        lambda p, n: blo.L2Ball(p["radius"], p["center"], p["low"], p["high"]),
        cut_oracles.cut_faces(2, Face),
    ),
    "cut l1 ball": Kind(
        cut_oracles.cut_parameters,
        lambda p, n: blo.L1Ball(p["radius"], p["center"], p["low"], p["high"]),
        cut_oracles.cut_faces(1, Face),
    ),
    "affine": Kind(
        lambda rng, n: {"A": rng.normal(size=(2, n)), "b": rng.normal(size=2)},
        lambda p, n: blo.Affine(p["A"], p["b"]),
        affine_faces,
    ),
    "halfspaces": Kind(
        lambda rng, n: {"A": rng.normal(size=(n + 1, n)), "b": rng.uniform(0.0, 1.0, size=n + 1)},
        lambda p, n: blo.Halfspaces(p["A"], p["b"]),
        halfspace_faces,
    ),
    "smooth": Kind(smooth_parameters, smooth_term, smooth_faces, slow=True),
    "smooth with equation": Kind(
        lambda rng, n: {"normal": rng.normal(size=n), "level": 0.1 * rng.normal(size=()), **smooth_parameters(rng, n)},
        smooth_term,
        smooth_faces,
        slow=True,
    ),
}
PENALTIES = tuple(name for name, kind in KINDS.items() if kind.is_penalty)


def batch(cases: list[TermCase], objective: Callable[[Tensor, Tensor], Tensor]) -> blo.LowerProblem:
    """Return cases of one kind as one batched problem."""
    kind = KINDS[cases[0].kind]

    def term(theta: Tensor) -> Any:
        rows = [case.torch_parameters(theta) for case in cases]
        return kind.term({name: torch.stack([row[name] for row in rows]) for name in rows[0]}, cases[0].n)

    if kind.is_penalty:
        return blo.LowerProblem(objective, penalty=term, batched=True)
    return blo.LowerProblem(objective, constraint=term, batched=True)


def draw(
    kind: str, n: int, m: int, seed: int, *, moving: bool = True, margin: float = 0.05, theta: Array | None = None
) -> TermCase:
    """Draw a case at least `margin` away from every degenerate one; n is at most 6."""
    rng = np.random.default_rng(seed)
    while True:
        quadratic = oracles.draw("free", n, m, int(rng.integers(2**31)), theta=theta)
        point = quadratic.theta
        values = KINDS[kind].draw(rng, n)
        pace = 0.2 if moving else 0.0
        parameters = {name: (value, pace * rng.normal(size=(*value.shape, m))) for name, value in values.items()}
        case = TermCase(kind, quadratic, point, parameters)
        if case.margin(point) > margin:
            return case
