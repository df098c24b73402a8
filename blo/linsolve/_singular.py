"""Solutions of systems whose matrix may be singular."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import transforms_active
from blo.sets._rows import times

#: Rounds of scaling. Each reduces the spread of the sizes of rows to about its square root.
_ROUNDS = 4
#: Orders of derivatives that are right.
_ORDERS = 2


def followed(*tensors: Tensor) -> bool:
    """Return whether results computed from these tensors may be differentiated."""
    return transforms_active() or any(tensor.requires_grad for tensor in tensors)


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
    even, rows, columns, sound = scaled(matrix)
    constant, rhs = even.detach(), rows * b
    if symmetric:
        values, right = torch.linalg.eigh(constant)
        left = right
    else:
        left, values, transposed = torch.linalg.svd(constant)
        right = transposed.mT
    # Values within rounding of zero belong to the null space: their components of the solution are left out.
    flat = values.abs() <= singular_below(matrix) * values.abs().amax(-1, keepdim=True)

    def inverse(v: Tensor, into: Tensor, out: Tensor) -> Tensor:
        return times(out, torch.where(flat, 0.0, times(into.mT, v) / torch.where(flat, 1.0, values)))

    x = inverse(rhs, left, right)
    if followed(matrix, b):
        # For constant factors, each round makes one more order of derivatives right. Two equations define the solution,
        # `E x = rhs` and `x = E^T w`, by which x has no component in the null space of E, also when that moves.
        x = x.detach()
        w = inverse(x, right, left)
        for _ in range(_ORDERS):
            away = times(right, flat * times(right.mT, times(even.mT, w) - x))
            x = x + inverse(rhs - times(even, x), left, right) + away
            w = w + inverse(x - times(even.mT, w), right, left)
    return torch.where(sound.unsqueeze(-1), columns * x, torch.nan), ((values < 0) & ~flat).any(-1)


def singular_below(matrix: Tensor) -> float:
    """Return the ratio of an eigenvalue to the largest one that rounding cannot tell from zero."""
    return 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps


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
    """Return about the square root: a power of two, which is locally constant and causes no rounding."""
    return torch.where(size > 0, size.detach(), 1.0).log2().mul(0.5).round().exp2()
