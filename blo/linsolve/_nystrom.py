"""The randomised Nystrom approximation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from blo._precision import require_single
from blo._settings import require_count, require_positive, require_tolerance
from blo.linsolve._base import (
    LinearSolution,
    LinearSolver,
    relative_residual,
    require_symmetric,
    within,
)
from blo.linsolve._precondition import Preconditioner, Product
from blo.linsolve._space import EUCLIDEAN
from blo.operators import Operator, Restricted


@dataclass(frozen=True, eq=False)
class Nystrom(LinearSolver, Preconditioner):
    """`(U diag(values) U' + damping I)^-1` with a positive semidefinite approximation of low rank for A.

    The approximation takes `rank` products of A with random vectors, and its inverse no iteration. It is exact if A has
    no more than `rank` non-zero eigenvalues on the tangent space; otherwise the residual measures its error. As
    `CG(preconditioner=Nystrom(...))` it speeds up an exact solve.

    Source: Hataya and Yamada (AISTATS 2023), the inverse; Frangella, Tropp and Udell (2023), algorithm 2.1 for the
    approximation and section 5 for the preconditioner.

    Attributes:
        rank: number of random vectors, each of which costs a product and n numbers of memory in every lane.
        damping: d in `(A + d I) x = b`, positive: off the low-rank subspace there is no other curvature.
        seed: determines the random vectors, which are the same in every lane and on every device.
        tol: relative residual up to which a solution counts as converged; None: any solution better than zero does.

    Raises:
        ValueError: if `rank` is below 1, `damping` is not positive, or `tol` is negative.
        StructureError: by `solve` and `inverse`, if the operator is not declared symmetric, or for half precision.
    """

    rank: int = 20
    damping: float = 1e-2
    seed: int = 0
    tol: float | None = None

    def __post_init__(self) -> None:
        require_count(self.rank, "Nystrom.rank", "To solve no system, use the strategy `Zero`.")
        require_positive(self.damping, "Nystrom.damping", "A matrix of low rank has no inverse without it.")
        require_tolerance(self.tol, "Nystrom.tol")

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        size, zero = EUCLIDEAN.size(b)
        rhs = b / size
        vectors, values, indefinite = self._approximate(operator, b)
        inside = within(operator, rhs)
        shares = vectors.mT @ inside.unsqueeze(-1)
        x = (vectors @ (shares / (values + self.damping).unsqueeze(-1))).squeeze(-1)
        if self.rank < b.shape[-1]:  # otherwise the difference is rounding, which the division would amplify
            x = x + (inside - (vectors @ shares).squeeze(-1)) / self.damping
        # Off the tangent space, which x leaves by rounding, the system is (1 + damping) I.
        x = within(operator, x) + (rhs - inside) / (1 + self.damping)
        x = torch.where(zero, 0.0, x)
        return LinearSolution(
            x=size * x,
            residual=relative_residual(operator, x, rhs, self.damping),
            iterations=self.rank * (~zero).long().squeeze(-1),
            indefinite=indefinite & ~zero.squeeze(-1),
            method="Nystrom",
        )

    def inverse(self, operator: Operator, like: Tensor) -> Product:
        vectors, values, _ = self._approximate(operator, like)
        # Off the low-rank subspace, A is replaced by the smallest value l. Scaled by l + damping, the inverse is then
        # M^-1 = (l + damping) U (diag(values) + damping I)^-1 U' + (I - U U'). Frangella et al., section 5.
        weights = (values[..., -1:] + self.damping) / (values + self.damping) - 1

        def inverse(v: Tensor) -> Tensor:
            shares = (vectors.mT @ v.unsqueeze(-1)).squeeze(-1)
            return v + (vectors @ (weights * shares).unsqueeze(-1)).squeeze(-1)

        return inverse

    def _approximate(self, operator: Operator, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return orthonormal vectors U `(*lanes, n, k)`, decreasing values `(*lanes, k)`, and the indefinite lanes."""
        require_symmetric(operator, "Nystrom")
        require_single(like.dtype, "Nystrom", "CG")
        n = like.shape[-1]
        if isinstance(operator, Restricted):
            # There may be more vectors than free directions. Those off the tangent space must not look like null
            # vectors of A.
            operator = replace(operator, beside=1.0)
        # A NumPy generator leaves torch's random state alone, and works under `vmap`.
        drawn = np.random.default_rng(self.seed).standard_normal((min(self.rank, n), n))
        directions = [within(operator, torch.from_numpy(row).to(like).expand_as(like)) for row in drawn]
        sketch, _ = torch.linalg.qr(torch.stack(directions, -1))
        image = torch.stack([operator(column) for column in sketch.unbind(-1)], -1)
        # Torch raises an error for a batch in which one matrix is not finite.
        sound = torch.isfinite(image).all(-1).all(-1)[..., None, None]
        image = torch.where(sound, image, 0.0)
        # Factorise A + shift I, which is stable although A may be singular, and subtract the shift from the values.
        shift = n**0.5 * torch.finfo(like.dtype).eps * torch.linalg.matrix_norm(image)[..., None, None]
        core = sketch.mT @ image
        eigenvalues, basis = torch.linalg.eigh((core + core.mT) / 2)
        indefinite = (eigenvalues < -10 * shift.squeeze(-1)).any(-1)
        root = (eigenvalues.clamp(min=0).unsqueeze(-2) + shift).sqrt()
        left = (image + shift * sketch) @ (basis / torch.where(root > 0, root, 1.0))
        vectors, singular, _ = torch.linalg.svd(left, full_matrices=False)
        vectors = torch.where(sound, vectors, torch.nan)
        return vectors, (singular.square() - shift.squeeze(-1)).clamp(min=0), indefinite
