"""A batch of box problems as large as images, solved together and one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import blo
from benchmarks.measure import race, ratio, relative_error
from benchmarks.registry import Cell, Goal, Outcome, Setting, Table, benchmark

_STEPS, _PRODUCTS, _STEP = 10, 10, 0.5


@dataclass(frozen=True, eq=False)
class _Batch:
    """`minimise |z - target|^2/2 where z minimises <z, d z/2 - theta c> within [-1, 1]`; the first axis is the lane."""

    d: Tensor
    c: Tensor
    target: Tensor

    def inner(self, theta: Tensor, z: Tensor) -> Tensor:
        return (z * (0.5 * self.d * z - theta * self.c)).sum(-1)

    def outer(self, theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (z - self.target).square().sum()

    def lane(self, index: int) -> _Batch:
        return _Batch(self.d[index], self.c[index], self.target[index])


@benchmark("batches", "128 box problems of 3,072 unknowns, together and one after the other")
def run(setting: Setting) -> Outcome:
    """Make ten projected gradient steps and ten iterations of CG, with blo and by hand."""
    lanes, size = (4, 6) if setting.quick else (128, 3072)
    generator = setting.generator()
    theta = setting.randn(size, generator=generator)
    c, target = (setting.randn(lanes, size, generator=generator) for _ in range(2))
    d = torch.rand(lanes, size, generator=generator, dtype=torch.float64).to(setting.device, setting.dtype) + 1
    together = _Batch(d, c, target)
    apart = [together.lane(index) for index in range(lanes)]

    whole = _hypergradient(together, theta, batched=True)
    single = [_hypergradient(lane, theta, batched=False) for lane in apart]
    contestants: dict[str, Callable[[], Tensor]] = {
        "blo, together": whole,
        "blo, one after the other": lambda: torch.stack([one() for one in single]).sum(0),
        "by hand, together": lambda: _by_hand(together, theta),
        "by hand, one after the other": lambda: torch.stack([_by_hand(lane, theta) for lane in apart]).sum(0),
    }
    answer = _by_hand(together, theta)
    times = race(contestants, setting, floor="blo, together")
    rows: list[list[Cell]] = [
        [
            name,
            times[name].milliseconds,
            times[name].wall_milliseconds,
            times[name].over_floor,
            relative_error(call(), answer),
        ]
        for name, call in contestants.items()
    ]
    # A batch saves calls, but no arithmetic. On a CPU, a call for 3,072 unknowns takes about four times as long as its
    # arithmetic: by hand, too, the batch is only about four times faster than the loop, and blo must gain as much. One
    # lane does not fill a GPU: there the batch by hand is about 84 times faster.
    loop, off = ratio(times["blo, one after the other"].seconds, times["blo, together"].seconds)
    gain, _ = ratio(times["by hand, one after the other"].seconds, times["by hand, together"].seconds)
    limit = 50.0 if setting.device.type == "cuda" else gain
    columns = ["", "ms", "wall ms", "over blo together", "difference to by hand"]
    table = Table(f"{lanes} x {size:,}", columns, rows)
    return Outcome([table], [Goal("a Python loop over blo together", loop, limit, at_least=True, off=off)])


def _hypergradient(batch: _Batch, theta: Tensor, *, batched: bool) -> Callable[[], Tensor]:
    lower = blo.LowerProblem(batch.inner, blo.Box(-1.0, 1.0), batched=batched)
    solver = blo.ProjectedGradient(step=_STEP, max_steps=_STEPS, tol=None)
    gradient = blo.Implicit(blo.CG(max_iter=_PRODUCTS, tol=0.0))
    z0 = torch.zeros_like(batch.c)

    def run() -> Tensor:
        found = blo.value_and_hypergrad(
            batch.outer, lower, theta, z0, solver=solver, gradient=gradient, on_failure="ignore"
        )
        grad: Tensor = found.grad
        return grad

    return run


def _by_hand(batch: _Batch, theta: Tensor) -> Tensor:
    z = torch.zeros_like(batch.c)
    for _ in range(_STEPS):
        at = z.requires_grad_()
        (slope,) = torch.autograd.grad(batch.inner(theta, at).sum(), at)
        z = (z.detach() - _STEP * slope).clamp(-1.0, 1.0)
    z, theta = z.detach().requires_grad_(), theta.detach().requires_grad_()
    free = (z.detach().abs() < 1 - 1e-7).to(z.dtype)
    (v,) = torch.autograd.grad(batch.outer(theta, z), z)
    (slope,) = torch.autograd.grad(batch.inner(theta, z).sum(), z, create_graph=True)
    r = v * free
    x, p, rr = torch.zeros_like(r), r, (r * r).sum(-1, keepdim=True)
    for _ in range(_PRODUCTS):
        (q,) = torch.autograd.grad(slope, z, p, retain_graph=True)
        q = q * free
        step = rr / (p * q).sum(-1, keepdim=True)
        x, r = x + step * p, r - step * q
        last, rr = rr, (r * r).sum(-1, keepdim=True)
        p = r + rr / last * p
    (found,) = torch.autograd.grad(slope, theta, -x)
    return found
