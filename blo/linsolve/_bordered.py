"""Systems on a tangent space, with the constraints beside the matrix instead of inside it."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.linsolve._singular import scaled
from blo.operators import Hessian, Restricted


def bordered(operator: Restricted, b: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Solve `P (A + K + damping I) P x = b` as `[A + K + damping I, I - P; I - P, P] [x; y] = [b; 0]`.

    A large entry of A stays an entry there: P would spread it, and its rounding, over all others. So it is for
    entropies and barriers next to a bound, with curvatures like `1 / z`. There x must not be projected either.

    Returns:
        x, shape `(*lanes, n)`, NaN where the matrix is not finite; and of the residual along the tangent space and of
        the part of x beside it, relative to b and x, the sum, shape `lanes`.
    """
    one = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
    tangent = operator.tangent
    inside = Hessian(tangent.project).dense(b)
    beside = one - inside
    curved = Hessian(lambda v: tangent.curve(tangent.project(v))).dense(b)
    corner = operator.operator.dense(b) + curved + damping * one
    system = torch.cat([torch.cat([corner, beside], -1), torch.cat([beside, inside], -1)], -2)
    matrix, rows, columns, sound = scaled(system)
    rhs = rows * torch.cat([b, torch.zeros_like(b)], -1)
    found, _ = torch.linalg.solve_ex(matrix, rhs.unsqueeze(-1))
    x = torch.where(sound.unsqueeze(-1), (columns * found.squeeze(-1))[..., : b.shape[-1]], torch.nan)
    image = tangent.project((corner @ x.unsqueeze(-1)).squeeze(-1))
    off = (beside @ x.unsqueeze(-1)).squeeze(-1)
    pairs = ((image - b, b), (off, x))
    residual: Tensor = sum(
        torch.linalg.vector_norm(of, dim=-1) / torch.linalg.vector_norm(to, dim=-1) for of, to in pairs
    )
    return x, residual
