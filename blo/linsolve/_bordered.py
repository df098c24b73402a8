"""Systems on a tangent space as bordered systems: the constraints are extra rows and columns beside the matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.linsolve._singular import scaled
from blo.operators import Hessian, Restricted


def bordered(operator: Restricted, b: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Solve `P (A + K + damping I) P x = b` as `[A + K + damping I, I - P; I - P, P] [x; y] = [b; 0]`.

    In this form a large entry of A stays a single entry, while P A P spreads it, and its rounding, over all others.
    Entropies and barriers have such entries near a bound, where their curvature grows like `1 / z`. For the same reason
    x is not projected.

    Returns:
        x, shape `(*lanes, n)`, NaN where the matrix is not finite; and an error of shape `lanes`: the residual on the
        tangent space relative to b, plus the part of x off the tangent space relative to x.
    """
    one = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
    tangent = operator.tangent
    inside = Hessian(tangent.project).dense(b)
    beside = one - inside
    curved = Hessian(lambda v: tangent.curve(tangent.project(v))).dense(b)
    corner = operator.operator.dense(b) + curved + damping * one
    # The second row gives (I - P) x = 0 and P y = 0. The first row times P is then P (A + K + damping I) x = b.
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
