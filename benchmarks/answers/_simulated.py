"""Benchopt's `simulated` bilevel problem: two finite sums of quadratics in 100 + 100 unknowns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.answers._finite_sum import Batch, FiniteSum

#: Benchopt's defaults: the spectra of the mean Hessians in z and theta end in [MU, 1], those of the cross terms at 0.1.
MU, CROSS = 0.1, 0.1


def simulated(seed: int, *, size: int = 100, examples: int = 1024, batch: int = 64) -> FiniteSum:
    """Draw the problem.

    An example of either objective is `z'(a a')z/2 + theta'(b b')theta/2 + theta'(c d')z + e'z + f'theta`, where a and b
    are normal with covariances of log-spaced spectrum, theta's with one zero, and `E c d'` has log-spaced singular
    values. The recipe is benchopt's (datasets/simulated.py), which draws random numbers with JAX; this module uses
    torch, so the instances differ. A batch is stored as the mean matrices of its examples, which changes no value.

    Source: github.com/benchopt/benchmark_bilevel.
    """
    generator = torch.Generator().manual_seed(seed)
    upper, lower = (_batches(generator, size, examples, batch) for _ in range(2))
    (upper_matrix, upper_linear), (lower_matrix, lower_linear) = ([p.mean(0) for p in part] for part in (upper, lower))

    # The full objectives in blocks: theta first, then z.
    h, c = lower_matrix[size:, size:], lower_matrix[:size, size:]
    jacobian, offset = -torch.linalg.solve(h, c.T), -torch.linalg.solve(h, lower_linear[size:])
    lift = torch.cat([torch.eye(size, dtype=h.dtype), jacobian])
    at_zero = torch.cat([torch.zeros_like(offset), offset])
    hessian = lift.T @ upper_matrix @ lift
    constant = lift.T @ (upper_matrix @ at_zero + upper_linear)
    eigenvalues = torch.linalg.eigvalsh(h)
    return FiniteSum(
        "simulated",
        _quadratic,
        _quadratic,
        upper,
        lower,
        torch.full((size,), -2.0, dtype=h.dtype),
        torch.zeros(size, dtype=h.dtype),
        lambda thetas: thetas @ jacobian.T + offset,
        lambda thetas: thetas @ hessian + constant,
        lambda batches, times: tuple(part.unflatten(0, (-1, times)).mean(1) for part in batches),
        True,
        (float(eigenvalues[0]), float(eigenvalues[-1])),
    )


def _quadratic(theta: Tensor, z: Tensor, batch: Batch) -> Tensor:
    matrix, linear = batch
    w = torch.cat([theta, z], -1)
    return (w * ((matrix @ w.unsqueeze(-1)).squeeze(-1) / 2 + linear)).sum()


def _batches(generator: torch.Generator, size: int, examples: int, batch: int) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def orthogonal() -> Tensor:
        basis: Tensor = torch.linalg.svd(normal(size, size))[0]
        return basis

    def roots(count: int) -> Tensor:
        return torch.logspace(math.log10(MU) / 2, 0, count, dtype=torch.float64)

    def correlated(spectrum: Tensor) -> Tensor:
        basis = orthogonal()
        return normal(examples, size) @ (basis * spectrum) @ basis.T

    a = correlated(roots(size))
    b = correlated(torch.cat([torch.zeros(1, dtype=torch.float64), roots(size - 1)]))
    left, right = orthogonal(), orthogonal()
    shared = normal(examples, size)
    spectrum = torch.logspace(math.log10(MU), math.log10(CROSS), size, dtype=torch.float64)
    c, d = (shared * spectrum) @ left.T, shared @ right.T

    def mean(x: Tensor, y: Tensor) -> Tensor:
        x, y = (part.unflatten(0, (-1, batch)) for part in (x, y))
        return x.transpose(1, 2) @ y / batch

    cross = mean(c, d)
    matrix = torch.cat([torch.cat([mean(b, b), cross], 2), torch.cat([cross.transpose(1, 2), mean(a, a)], 2)], 1)
    return matrix, normal(examples, 2 * size).unflatten(0, (-1, batch)).mean(1)
