"""Solutions of systems whose matrix may be singular."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rounds of scaling. Each reduces the spread of the sizes of rows to about its square root.
_ROUNDS = 4


def least_norm(matrix: Tensor, b: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Solve `A x = b` without a component of x in the null space; if there is no solution, minimise the residual.

    Rows and columns are first scaled to equal size, so that a direction whose curvature is small only because of its
    units does not count as a null vector. Norms are those of the scaled system.

    Source: Ruiz (2001) for the scaling.

    Args:
        matrix: shape `(*lanes, n, n)`.
        b: shape `(*lanes, n)`.
        symmetric: whether the matrix is.

    Returns:
        x of b's shape, NaN where the matrix is not finite, and whether a symmetric matrix has a negative eigenvalue
        beyond rounding, shape `lanes`.
    """
    n, eps = b.shape[-1], torch.finfo(b.dtype).eps
    even, rows, columns, sound = scaled(matrix)
    rhs = (rows * b).unsqueeze(-1)
    if symmetric:
        values, right_vectors = torch.linalg.eigh(even)
        shares = right_vectors.mT @ rhs
    else:
        left_vectors, values, transposed = torch.linalg.svd(even)
        right_vectors, shares = transposed.mT, left_vectors.mT @ rhs
    # Values within rounding of zero belong to the null space: their components of the solution are left out.
    flat = values.abs() <= 10 * n * eps * values.abs().amax(-1, keepdim=True)
    shares = torch.where(flat, 0.0, shares.squeeze(-1) / torch.where(flat, 1.0, values))
    x = columns * (right_vectors @ shares.unsqueeze(-1)).squeeze(-1)
    return torch.where(sound.unsqueeze(-1), x, torch.nan), ((values < 0) & ~flat).any(-1)


def scaled(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `rows matrix columns` with rows and columns of about the same size.

    Returns:
        The matrix, the identity where it is not finite; the factors of rows and of columns, shape `(*lanes, n)`; and
        where it is finite, shape `lanes`.
    """
    sound = torch.isfinite(matrix).all(-1).all(-1)
    # Torch raises an error for a batch in which one matrix is not finite.
    even = torch.where(sound[..., None, None], matrix, torch.eye(matrix.shape[-1]).to(matrix))
    rows, columns = torch.ones_like(even[..., 0]), torch.ones_like(even[..., 0])
    for _ in range(_ROUNDS):
        left, right = _root(even.abs().amax(-1)), _root(even.abs().amax(-2))
        even = even / left.unsqueeze(-1) / right.unsqueeze(-2)
        rows, columns = rows / left, columns / right
    return even, rows, columns, sound


def _root(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0).sqrt()
