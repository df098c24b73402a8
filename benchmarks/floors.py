"""Hand-written floors: plain torch, with one retained graph of the lower gradient and the fewest products."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.boxed import Boxed
from benchmarks.smooth import Smooth


def hypergradient(problem: Smooth, products: int) -> Tensor:
    """Return the implicit hypergradient by `products` iterations of CG, for an upper objective of z alone.

    It checks nothing, stops nowhere and divides by zero where the right-hand side is zero.
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
