"""Conformance of sets and penalties: their proximal operator, and the tangent that implicit gradients use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from blo import tree
from blo._layout import Layout
from blo._term import Tangent, Term, expanded
from blo._types import Tree
from blo.penalties import Penalty
from blo.sets import Set
from blo.testing._multipliers import check_multipliers
from blo.testing._suite import Conformance, Suite, normal, sides

#: Displacement of central differences: far below the distance of a random point from the next change of face.
_STEP = 1e-5


def check_set(
    constraint: Set | Callable[[Tree], Set],
    z0: Tree,
    *,
    theta: Tree = (),
    batched: bool = False,
    sample: Callable[[torch.Generator], Tree] | None = None,
    convex: bool = True,
    cases: int = 5,
    seed: int = 0,
) -> Conformance:
    """Check a constraint set.

    Args:
        constraint: the set, or a callable `theta -> set`, as in `LowerProblem`.
        z0: a lower variable that fits, converted to float64; its values matter only if there is no `sample`.
        theta: the theta at which a moving set is checked; a tree of float64 tensors.
        batched: as in `LowerProblem`.
        sample: draws a point to project, a tree like z0; by default z0 plus normal numbers of size 2.
        convex: whether the set is convex. Otherwise the properties of projections onto convex sets are not tested.
        cases: number of points.
        seed: of the random numbers.

    Raises:
        AssertionError: if a property fails; the message names it.
    """
    made = _Made(constraint, z0, theta, batched, sample)
    suite, generator = Suite(made.name), torch.Generator().manual_seed(seed)
    for _ in range(cases):
        point, other, v, w = (*(made.draw(generator) for _ in range(2)), *made.vectors(generator))
        term = made.term(theta)
        nearest = suite.untouched("arguments are not modified", term.prox, (point, 1.0))
        suite.near("projecting twice is projecting once", term.prox(nearest, 1.0), nearest, 1e-10, "the projection")
        _kept(suite, made, nearest, point)
        limits = term.bounds(point)
        if limits is not None:
            within = torch.minimum(torch.maximum(point, expanded(limits[0], point)), expanded(limits[1], point))
            suite.near("the projection clips to the bounds", nearest, within, 1e-12, "the projection")
        if convex:
            size = 1.0 + float(point.abs().max()) ** 2
            for trial in (other, -point, point + v, nearest + 0.3 * v, nearest - 0.3 * v, nearest + 0.01 * w):
                member = term.prox(trial, 1.0)
                angle = float(((point - nearest) * (member - nearest)).sum(-1).max())
                text = f"<point - projection, member - projection> is {angle:.2e}, which is positive"
                suite.require("no member is nearer than the projection", angle <= 1e-9 * size, text)
            _contracts(suite, point, other, nearest, term.prox(other, 1.0))
        _face(suite, made, term, point, nearest, v, w)
        _moves(suite, made, point, nearest, v)
    _everywhere(suite, made, generator)
    return suite.report()


def check_penalty(
    penalty: Penalty | Callable[[Tree], Penalty],
    z0: Tree,
    *,
    theta: Tree = (),
    batched: bool = False,
    sample: Callable[[torch.Generator], Tree] | None = None,
    cases: int = 5,
    seed: int = 0,
) -> Conformance:
    """Check a penalty.

    Args:
        penalty: the penalty, or a callable `theta -> penalty`, as in `LowerProblem`.
        z0: as in `check_set`.
        theta: as in `check_set`.
        batched: as in `check_set`.
        sample: as in `check_set`.
        cases: as in `check_set`.
        seed: as in `check_set`.

    Raises:
        AssertionError: if a property fails; the message names it.
    """
    made = _Made(penalty, z0, theta, batched, sample)
    suite, generator = Suite(made.name), torch.Generator().manual_seed(seed)
    for _ in range(cases):
        point, other, v, w = (*(made.draw(generator) for _ in range(2)), *made.vectors(generator))
        term = made.term(theta)
        assert isinstance(term, Penalty)
        nearest = suite.untouched("arguments are not modified", term.prox, (point, 1.0))
        _kept(suite, made, nearest, point)
        value = term.value(nearest)
        text = f"its shape is {tuple(value.shape)}, not {tuple(point.shape[:-1])}"
        suite.require("the value has one number per lane", value.shape == point.shape[:-1], text)
        for step in (0.3, torch.full((*point.shape[:-1], 1), 0.3, dtype=point.dtype)):
            x = term.prox(point, step)

            def cost(at: Tensor, term: Penalty = term, point: Tensor = point) -> Tensor:
                return 0.5 * (at - point).square().sum(-1) + 0.3 * term.value(at)

            for trial in (x + 1e-4 * v, x + 0.3 * w, point, torch.zeros_like(point), term.prox(other, step)):
                gain = float((cost(x) - cost(trial)).max())
                text = f"another point costs {gain:.2e} less than prox(z, 0.3)"
                suite.require("the proximal point minimises", gain <= 1e-12 * (1 + float(cost(x).abs().max())), text)
        _contracts(suite, point, other, nearest, term.prox(other, 1.0))
        _face(suite, made, term, point, nearest, v, w)
        _moves(suite, made, point, nearest, v)
    _everywhere(suite, made, generator)
    return suite.report()


@dataclass(frozen=True, eq=False)
class _Made:
    """The term as the user gave it, and the layout to which it is fitted."""

    given: Term | Callable[[Tree], Term]
    z0: Tree
    theta: Tree
    batched: bool
    sample: Callable[[torch.Generator], Tree] | None

    @property
    def name(self) -> str:
        return type(self.term(self.theta)).__name__

    @property
    def moving(self) -> bool:
        return not isinstance(self.given, Term)

    def layout(self, dtype: torch.dtype = torch.float64) -> Layout:
        return Layout.of(tree.map(lambda leaf: leaf.to(dtype), self.z0), batched=self.batched)

    def term(self, theta: Tree, dtype: torch.dtype = torch.float64) -> Term:
        return self.unfitted(theta).fit(self.layout(dtype))

    def unfitted(self, theta: Tree) -> Term:
        return self.given if isinstance(self.given, Term) else self.given(theta)

    def draw(self, generator: torch.Generator) -> Tensor:
        if self.sample is not None:
            return self.layout().ravel(tree.map(lambda leaf: leaf.double(), self.sample(generator)))
        z = self.layout().ravel(tree.map(lambda leaf: leaf.detach().double(), self.z0))
        return z + 2.0 * normal(generator, *z.shape)

    def vectors(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (*self.layout().lanes, self.layout().size)
        return normal(generator, *shape), normal(generator, *shape)

    def moved(self, direction: Tree, t: float) -> Term:
        return self.term(tree.map(lambda p, d: p + t * d, self.theta, direction))


def _kept(suite: Suite, made: _Made, nearest: Tensor, point: Tensor) -> None:
    single = point.to(torch.float32)
    found = made.term(made.theta, torch.float32).prox(single, 1.0)
    kept = nearest.dtype == point.dtype and found.dtype == torch.float32 and found.device == point.device
    suite.require("dtype and device are kept", kept, f"{point.dtype} gave {nearest.dtype}, float32 gave {found.dtype}")
    text = f"{tuple(point.shape)} gave {tuple(nearest.shape)}"
    suite.require("the shape is kept", nearest.shape == point.shape, text)


def _contracts(suite: Suite, point: Tensor, other: Tensor, nearest: Tensor, image: Tensor) -> None:
    """Firm nonexpansiveness, which every proximal operator of a convex function has."""
    inner = ((point - other) * (nearest - image)).sum(-1)
    excess = float(((nearest - image).square().sum(-1) - inner).max())
    text = f"|Px - Py|^2 exceeds <x - y, Px - Py> by {excess:.2e}"
    suite.require("firmly nonexpansive", excess <= 1e-9 * (1 + float(inner.abs().max())), text)


def _face(suite: Suite, made: _Made, term: Term, point: Tensor, x: Tensor, v: Tensor, w: Tensor) -> None:
    """The tangent at the solution x of `1/2 |x - point|^2 + term(x)`, whose smooth part has Hessian I."""
    slope = x - point
    tangent: Tangent = suite.untouched("arguments are not modified", term.tangent, (x, slope))
    once = tangent.project(v)
    suite.near("P is idempotent", tangent.project(once), once, 1e-10, "P P v")
    suite.near("P is symmetric", (once * w).sum(-1), (v * tangent.project(w)).sum(-1), 1e-10, "<P v, w>")
    other = tangent.project(w)
    bent = tangent.curve(once)
    suite.near("K is symmetric", (bent * other).sum(-1), (once * tangent.curve(other)).sum(-1), 1e-9, "<K P v, P w>")
    suite.near("K maps tangent vectors to tangent vectors", tangent.project(bent), bent, 1e-9, "P K P v")
    counts = tangent.counts()
    rank = sum(tangent.project(e.expand_as(x))[..., i] for i, e in enumerate(torch.eye(x.shape[-1]).to(x)))
    assert isinstance(rank, Tensor)
    suite.near("free counts the rank of P", counts.free.to(x.dtype), rank, 1e-8, "the number of free directions")
    total = (counts.free + counts.active).to(x.dtype)
    suite.near("free and active add up to n", total, torch.full_like(total, x.shape[-1]), 0.0, "free + active")
    if bool(counts.degenerate.any()):
        return  # only one-sided derivatives exist here
    pull = slope if tangent.force is None else slope + tangent.force(term, x)
    if tangent.force is not None or isinstance(term, Set):
        suite.near("the gradient has no part along P", tangent.project(pull), torch.zeros_like(x), 1e-6, "P gradient")
    # x moves by u with P (I + K) u = P w and u tangent.
    u = sides(lambda t: term.prox(point + t * w, 1.0), _STEP)
    suite.near("solutions move inside the range of P", tangent.project(u), u, 1e-6, "P dz")
    balance = tangent.project(u + tangent.curve(tangent.project(u)))
    suite.near("solutions move as P and K say", balance, tangent.project(w), 1e-5, "P (I + K) dz, against P dpoint,")
    given = made.unfitted(made.theta)
    dependent = tangent.strain is not None and bool((tangent.strain.surplus() > 0).any())
    if isinstance(given, Set) and not dependent:  # otherwise the multipliers are not unique
        check_multipliers(suite, given, made.layout(), point, tangent, _STEP)


def _moves(suite: Suite, made: _Made, point: Tensor, x: Tensor, v: Tensor) -> None:
    """How the solution moves with theta, by differences of solutions, against motion and force."""
    term = made.term(made.theta)
    still = term.motion(term, x)
    suite.near("the motion from a term to itself is zero", still, torch.zeros_like(x), 0.0, "the motion")
    if not made.moving:
        return
    tangent = term.tangent(x, x - point)
    if bool(tangent.counts().degenerate.any()):
        return
    generator = torch.Generator().manual_seed(int(x.numel()))
    direction = tree.map(lambda p: normal(generator, *p.shape), made.theta)
    dz = sides(lambda t: made.moved(direction, t).prox(point, 1.0), _STEP)
    face = sides(lambda t: made.moved(direction, t).motion(term, x), _STEP)
    inside = dz - face
    suite.near("the face moves as the motion says", tangent.project(inside), inside, 1e-6, "P (dz - N dtheta)")
    force = torch.zeros_like(x)
    if tangent.force is not None:
        pull = tangent.force

        def pulled(t: float) -> Tensor:
            moved = made.moved(direction, t)
            return pull(moved, x + moved.motion(term, x))

        force = sides(pulled, _STEP)
    rest = tangent.project(dz + force + tangent.curve(tangent.project(inside)))
    text = "P (dz + K (dz - N dtheta) + dforce)"
    suite.near("solutions move along the face as K and force say", rest, torch.zeros_like(x), 1e-5, text)
    leaves = tree.map(lambda p: p.detach().clone().requires_grad_(), made.theta)
    moved = made.term(leaves).motion(tree.detach(term), x)
    slope = sum(
        (g * d).sum()
        for g, d in zip(
            torch.autograd.grad((moved * v).sum(), tree.leaves(leaves), allow_unused=True, materialize_grads=True)
            if moved.requires_grad
            else [torch.zeros_like(p) for p in tree.leaves(leaves)],
            tree.leaves(direction),
            strict=True,
        )
    )
    assert isinstance(slope, Tensor)
    suite.near("the motion is differentiable in theta", slope, (face * v).sum(), 1e-6, "the derivative of the motion")


def _from_zero(suite: Suite, term: Term, v: Tensor, w: Tensor) -> None:
    """The derivative of prox at zero, where solvers start and norms have none, wherever prox has one along v."""
    step, origin = 1e-6, torch.zeros_like(v)
    middle = term.prox(origin, 1.0)
    ahead, behind = (term.prox(step * v, 1.0) - middle) / step, (middle - term.prox(-step * v, 1.0)) / step
    smooth = (ahead - behind).abs() < 1e-4
    pulled = torch.func.vjp(lambda z: term.prox(z, 1.0), origin)[1](w * smooth)[0]
    truth = (w * smooth * (ahead + behind) / 2).sum()
    suite.near("prox has a derivative at zero", (pulled * v).sum(), truth, 1e-5, "the derivative there")


def _everywhere(suite: Suite, made: _Made, generator: torch.Generator) -> None:
    """Lanes, transforms, second derivatives, and values that are not finite."""
    term, point, other = made.term(made.theta), made.draw(generator), made.draw(generator)

    def pieces(z: Tensor) -> tuple[Tensor, Tensor]:
        x = term.prox(z, 1.0)
        return x, term.tangent(x, x - z).project(z)

    whole = pieces(point)
    if made.batched and point.shape[0] > 1:
        mixed = torch.cat([point[:1], other[1:]])
        for found, truth in zip(pieces(mixed), whole, strict=True):
            suite.near("lanes are independent", found[0], truth[0], 1e-12, "a lane, when the others change,")
    stacked: Any = torch.vmap(pieces)(torch.stack([point, other]))
    for mapped, *rows in zip(stacked, whole, pieces(other), strict=True):
        suite.near("vmap is a loop", mapped, torch.stack(rows), 1e-10, "the mapped result")
    live = point.clone().requires_grad_()
    # Otherwise torch draws it from its default generator, which belongs to the caller.
    cotangent = torch.randn(point.shape, generator=generator, dtype=point.dtype).requires_grad_()
    for name, check in (("first", gradcheck), ("second", partial(gradgradcheck, grad_outputs=cotangent))):
        holds = bool(check(lambda z: term.prox(z, 1.0), (live,), raise_exception=False))
        suite.require(f"{name} derivatives of prox are right", holds, "they differ from central differences")
    broken = point.clone()
    broken[(0,) * (point.ndim - 1)] = torch.nan
    visible = bool(term.prox(broken, 1.0)[(0,) * (point.ndim - 1)].isnan().any())
    suite.require("a NaN stays visible", visible, "prox of NaN is finite")
    _from_zero(suite, term, *made.vectors(generator))
