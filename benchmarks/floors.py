"""Hand-written floors: plain torch with one retained graph of the lower gradient and the fewest products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.boxed import Boxed
from benchmarks.smooth import Smooth


def hypergradient(problem: Smooth, products: int) -> Tensor:
    """Return the implicit hypergradient by `products` iterations of CG, for an upper objective of z alone.

    It checks nothing, never stops early, and divides by zero if the right-hand side is zero.
    """
    z, theta = problem.z.detach().requires_grad_(), problem.theta.detach().requires_grad_()
    (r,) = torch.autograd.grad(problem.outer(theta, z), z)
    (slope,) = torch.autograd.grad(problem.inner(theta, z), z, create_graph=True)
    x, p, rr = torch.zeros_like(r), r, r @ r
    for _ in range(products):
        (q,) = torch.autograd.grad(slope, z, p, retain_graph=True)
        step = rr / (p @ q)
        x = x + step * p
        r = r - step * q
        last, rr = rr, r @ r
        p = r + rr / last * p
    (found,) = torch.autograd.grad(slope, theta, -x)
    return found


def boxed_hypergradient(problem: Boxed, products: int) -> Tensor:
    """Return the hypergradient of a batch of box problems by CG on the free coordinates, all lanes at once."""
    z, theta = problem.z.detach().requires_grad_(), problem.theta.detach().requires_grad_()
    free = (z.detach().abs() < 1).to(z.dtype)
    (v,) = torch.autograd.grad(problem.outer(theta, z), z)
    (slope,) = torch.autograd.grad(problem.inner(theta, z).sum(), z, create_graph=True)
    r = v * free
    x, p, rr = torch.zeros_like(r), r, (r * r).sum(-1, keepdim=True)
    for _ in range(products):
        (q,) = torch.autograd.grad(slope, z, p, retain_graph=True)
        q = q * free
        step = rr / (p * q).sum(-1, keepdim=True)
        x = x + step * p
        r = r - step * q
        last, rr = rr, (r * r).sum(-1, keepdim=True)
        p = r + rr / last * p
    (found,) = torch.autograd.grad(slope, theta, -x)
    return found


def product(slope: Tensor, z: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v -> H v from the retained graph of the slope."""
    return lambda v: torch.autograd.grad(slope, z, v, retain_graph=True)[0]


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, *, tol: float, most: int) -> Tensor:
    """Iterate CG from x until `|apply(x) - b| <= tol |b|`, or `most` times, and return the last iterate."""
    r = b - apply(x) if x.any() else b
    p, rr, least = r, r @ r, tol * tol * (b @ b)
    for _ in range(most):
        if rr <= least:
            break
        q = apply(p)
        step = rr / (p @ q)
        x = x + step * p
        r = r - step * q
        last, rr = rr, r @ r
        p = r + rr / last * p
    return x


def newton_cg(inner: Callable[[Tensor, Tensor], Tensor], theta: Tensor, z: Tensor, *, tol: float) -> Tensor:
    """Return the minimiser of a convex function by truncated Newton steps with backtracking.

    Source: Nocedal and Wright (2006), algorithm 7.1.
    """
    most = 16 * torch.finfo(z.dtype).eps * max(1.0, float(z.norm()))  # the gradient's rounding error
    while True:
        at = z.detach().requires_grad_()
        value = inner(theta, at)
        (slope,) = torch.autograd.grad(value, at, create_graph=True)
        down = slope.detach()
        size = float(down.norm())
        if size <= max(tol, most):
            return z
        accuracy = min(0.5, size**0.5)
        step = conjugate_gradients(product(slope, at), -down, torch.zeros_like(z), tol=accuracy, most=1000)
        rate, promise = 1.0, float(down @ step)
        with torch.no_grad():
            # Near the solution the decrease is smaller than the rounding error of the values: accept such a step.
            while inner(theta, z + rate * step) > value + 1e-4 * rate * promise + 1e-15 and rate > 1e-8:
                rate /= 2
        z = z + rate * step
