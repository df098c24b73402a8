"""What hypothesis draws: shapes and a seed, from which everything else follows.

Members of a set are made without its projection, and every case knows the truth from NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import blo
from blo._layout import Layout
from blo.sets import Set
from tests import cut_oracles, oracles
from tests.oracles import Array

SEEDS = st.integers(0, 2**32 - 1)
LANES = st.sampled_from([(), (1,), (3,)])


def generator(seed: int) -> torch.Generator:
    """Return a seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers in double precision."""
    return scale * torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class SetCase:
    """A set on flat tensors with what is known of it otherwise.

    Attributes:
        name: the kind of set.
        set: fitted to `(*lanes, n)`.
        member: a point of the set, drawn without projecting.
        point: any point, mostly outside.
        nearest: the projection of `point`, found by NumPy.
        lane: the set of one lane, on tensors of shape (n,).
    """

    name: str
    set: Set
    member: Tensor
    point: Tensor
    nearest: Tensor
    lane: Callable[[int], Set]

    @property
    def lanes(self) -> tuple[int, ...]:
        """The leading axes."""
        return tuple(self.point.shape[:-1])

    def __repr__(self) -> str:
        return f"SetCase({self.name}, shape={tuple(self.point.shape)})"


@dataclass(frozen=True)
class _Drawn:
    """The set of one lane: the parts of `SetCase` in NumPy, and the set's parameters."""

    parameters: tuple[Array, ...]
    member: Array
    nearest: Array


SETS: dict[str, Callable[..., Set]] = {
    "free": blo.Free,
    "box": blo.Box,
    "around": lambda x: blo.Box.around(x, 0.3, 0.0, 1.0),
    "nonnegative": blo.NonNegative,
    "ball": blo.L2Ball,
    "simplex": blo.Simplex,
    "capped simplex": blo.Simplex,
    "l1 ball": blo.L1Ball,
    "cut ball": blo.L2Ball,
    "cut l1 ball": blo.L1Ball,
    "affine": blo.Affine,
    "halfspaces": blo.Halfspaces,
}


def _draw_lane(name: str, point: Array, rng: np.random.Generator) -> _Drawn:
    n = len(point)
    if name == "free":
        return _Drawn((), rng.normal(size=n), point)
    if name == "nonnegative":
        return _Drawn((), rng.exponential(size=n), np.maximum(point, 0.0))
    if name == "ball":
        radius, center = rng.uniform(0.1, 2.0), rng.normal(size=n)
        direction = rng.normal(size=n)
        member = center + direction / np.linalg.norm(direction) * radius * rng.uniform() ** (1 / n)
        offset = point - center
        nearest = center + offset * min(1.0, radius / np.linalg.norm(offset))
        return _Drawn((np.array(radius), center), member, nearest)
    if name == "l1 ball":
        radius, center = rng.uniform(0.1, 3.0), rng.normal(size=n)
        member = center + radius * rng.uniform() * rng.dirichlet(np.ones(n)) * rng.choice([-1.0, 1.0], size=n)
        offset, nearest = point - center, point
        if np.abs(offset).sum() > radius:
            nearest = center + np.sign(offset) * oracles.project_simplex(np.abs(offset), radius)
        return _Drawn((np.array(radius), center), member, nearest)
    if name in ("cut ball", "cut l1 ball"):
        norm = 2 if name == "cut ball" else 1
        center = rng.normal(size=n)
        low = center - rng.uniform(-0.3, 1.0, size=n)
        high = low + rng.exponential(size=n)
        base = np.clip(center, low, high)
        radius, way = np.linalg.norm(base - center, norm) + rng.uniform(0.1, 2.0), rng.uniform(low, high) - base
        while np.linalg.norm(base + way - center, norm) > radius:
            way = 0.7 * way
        nearest = cut_oracles.project(point, radius, center, low, high, norm)
        return _Drawn((np.array(radius), center, low, high), base + way, nearest)
    if name == "affine":
        k = (n + 1) // 2
        basis = np.linalg.qr(rng.normal(size=(n, k)))[0].T
        A = (2 * np.eye(k) + np.tril(rng.uniform(-0.5, 0.5, size=(k, k)))) @ basis  # well conditioned
        member = rng.normal(size=n)
        system = np.block([[np.eye(n), A.T], [A, np.zeros((k, k))]])
        nearest = np.linalg.solve(system, np.concatenate([point, A @ member]))[:n]
        return _Drawn((A, A @ member), member, nearest)
    if name == "halfspaces":
        A, member = rng.normal(size=(n + 2, n)), rng.normal(size=n)
        b = A @ member + rng.exponential(size=n + 2)
        return _Drawn((A, b), member, oracles.project_polyhedron(point, A, b))
    if name == "simplex":
        total = rng.uniform(0.1, 3.0)
        return _Drawn((np.array(total),), total * rng.dirichlet(np.ones(n)), oracles.project_simplex(point, total))
    if name == "capped simplex":
        cap = rng.exponential(size=n)
        total, share = cap.sum() * rng.uniform(0.05, 0.95), rng.uniform(size=n)
        member, room = cap * share, cap * (1 - share)
        over = member.sum() > total
        member = member * total / member.sum() if over else cap - room * (cap.sum() - total) / room.sum()
        return _Drawn((np.array(total), cap), member, oracles.project_capped_simplex(point, total, cap))
    if name == "around":
        parameters: tuple[Array, ...] = (rng.uniform(size=n),)
        low, high = np.maximum(-0.3, -parameters[0]), np.minimum(0.3, 1.0 - parameters[0])
    else:
        low = rng.normal(size=n)
        high = low + rng.exponential(size=n)
        parameters = (low, high)
    return _Drawn(parameters, low + (high - low) * rng.uniform(size=n), np.clip(point, low, high))


def make_set_case(name: str, lanes: tuple[int, ...], n: int, seed: int) -> SetCase:
    """Return a case of one kind of set; `product` is a simplex, a box and a ball of n coordinates each."""
    rng = np.random.default_rng(seed)
    rows = lanes[0] if lanes else 1
    parts = ("simplex", "box", "ball") if name == "product" else (name,)
    points = [2.0 * rng.normal(size=(rows, n)) for _ in parts]
    drawn = [[_draw_lane(part, row, rng) for row in point] for part, point in zip(parts, points, strict=True)]

    def gather(pieces: list[list[Array]]) -> Tensor:
        joined = np.concatenate([np.stack(piece) for piece in pieces], axis=-1)
        return torch.as_tensor(joined if lanes else joined[0])

    def assemble(choose: Callable[[list[_Drawn]], list[Tensor]], like: Tensor) -> Set:
        sets = [SETS[part](*choose(lane)) for part, lane in zip(parts, drawn, strict=True)]
        whole = blo.Product(*sets) if name == "product" else sets[0]
        z = like.split(n, dim=-1) if name == "product" else like
        return whole.fit(Layout.of(z, batched=like.ndim > 1))

    def stacked(lane: list[_Drawn]) -> list[Tensor]:
        columns = zip(*(row.parameters for row in lane), strict=True)
        return [torch.as_tensor(np.stack(column) if lanes else column[0]) for column in columns]

    def lane(index: int) -> Set:
        return assemble(lambda rows: [torch.as_tensor(p) for p in rows[index].parameters], gather_row)

    point = gather([list(point) for point in points])
    gather_row = point[0] if lanes else point
    return SetCase(
        name=name,
        set=assemble(stacked, point),
        member=gather([[row.member for row in part] for part in drawn]),
        point=point,
        nearest=gather([[row.nearest for row in part] for part in drawn]),
        lane=lane,
    )


@st.composite
def set_cases(draw: st.DrawFn, names: tuple[str, ...] = (*SETS, "product")) -> SetCase:
    """Draw a set of any kind with one to six coordinates, with and without lanes."""
    return make_set_case(draw(st.sampled_from(names)), draw(LANES), draw(st.integers(1, 6)), draw(SEEDS))


@st.composite
def quadratic_cases(
    draw: st.DrawFn, kinds: tuple[oracles.Kind, ...] = oracles.KINDS, *, moving: bool | None = None
) -> oracles.QuadraticCase:
    """Draw a bilevel problem with known solution and hypergradient, away from degeneracy.

    Args:
        draw: given by hypothesis.
        kinds: the sets to choose from.
        moving: whether the set moves with theta; either by default.
    """
    moves = draw(st.booleans()) if moving is None else moving
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return oracles.draw(draw(st.sampled_from(kinds)), n, m, draw(SEEDS), moving=moves)


@st.composite
def batched_cases(draw: st.DrawFn, kinds: tuple[oracles.Kind, ...] = oracles.KINDS) -> oracles.BatchedCase:
    """Draw one to four cases of one kind that share theta."""
    kind, batch = draw(st.sampled_from(kinds)), draw(st.integers(1, 4))
    return oracles.draw_batch(kind, batch, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(SEEDS))


def spd(seed: int, lanes: tuple[int, ...], n: int, condition: float) -> Tensor:
    """Return symmetric matrices of shape `(*lanes, n, n)` with eigenvalues from 1/condition to 1."""
    q, _ = torch.linalg.qr(normal(seed, *lanes, n, n))
    values = torch.logspace(0.0, -float(np.log10(condition)), n, dtype=torch.float64)
    matrix = (q * values) @ q.mT
    return (matrix + matrix.mT) / 2


@dataclass(frozen=True, eq=False)
class System:
    """A batch of linear systems: matrices `(*lanes, n, n)`, right hand sides `(*lanes, n)`."""

    matrix: Tensor
    b: Tensor
    condition: float

    def __repr__(self) -> str:
        return f"System(shape={tuple(self.b.shape)}, condition={self.condition:g})"

    def truth(self, damping: float = 0.0) -> Tensor:
        """Return NumPy's solution of `(A + damping I) x = b`."""
        n = self.b.shape[-1]
        matrix = self.matrix.numpy() + damping * np.eye(n)
        return torch.as_tensor(np.linalg.solve(matrix, self.b.numpy()[..., None])[..., 0])


@st.composite
def spd_systems(draw: st.DrawFn, *, max_power: int = 8) -> System:
    """Draw symmetric positive definite systems with conditions 1 to 10^max_power, n from 1 to 8."""
    lanes, n, seed = draw(LANES), draw(st.integers(1, 8)), draw(SEEDS)
    condition = 10.0 ** draw(st.integers(0, max_power))
    return System(spd(seed, lanes, n, condition), normal(seed + 1, *lanes, n), condition)
