"""NuAT: the clean and the perturbed outputs of a batch held together in the nuclear norm (Sriramanan et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adv_train.methods.base import METHODS
from adv_train.methods.coefficients import Coefficient, rising
from adv_train.methods.gat import Guided
from adv_train.methods.moment import Moment
from adv_train.precision import at_full_resolution
from adv_train.ranks import Share
from adv_train.values import NotNegative

#: Steps of the Newton-Schulz iteration; each multiplies a small singular value by 1.5, and 1.5^40 is 10^7.
_STEPS = 45


@METHODS.register("nuat")
@dataclass(frozen=True, kw_only=True)
class NuAT(Guided):
    """Clean cross-entropy, and the nuclear norm of what one guided sign step changes in the outputs of the batch.

    D is the sum of the singular values of the matrix `f(x + z) - f(x)`, shape `(batch, classes)`, over the batch, and w
    rises linearly from 0 over the run. Source: "Towards efficient and effective adversarial training" (NeurIPS 2021);
    `coefficient` is that of its NuAT-WA, which raises w once an epoch.

    Attributes:
        coefficient: w at the end of the run.
    """

    coefficient: NotNegative = 4.0

    def weight(self, moment: Moment | None) -> Coefficient:
        return rising(self.coefficient, moment)

    def distance(self, logits: Tensor, clean: Tensor, share: Share) -> Tensor:
        return (nuclear_norm(logits - clean, share) / len(logits)).expand(len(logits))


def nuclear_norm(matrix: Tensor, share: Share | None = None) -> Tensor:
    """Return the sum of the singular values of a matrix, shape `()`; it can be differentiated once.

    The norm is `<A, P>` and its gradient P, where P is A with each singular value replaced by 1: the limit of
    X <- X (3 - X^T X) / 2 from A / |A| (Newton-Schulz). Matrix products alone compute it, whereas a singular value
    decomposition on a GPU makes the host wait. Singular values below 10^-6 of the largest count as less than they are.
    Where the rows are a part of a batch, the sum of the parts' values is the norm of the whole.
    """
    with torch.no_grad():
        share = share or Share(len(matrix))
        polar = at_full_resolution(_polar, share.whole_of(matrix))[share.rows]
    norm: Tensor = (matrix * polar).sum()
    return norm


def _polar(matrix: Tensor) -> Tensor:
    found: Tensor = matrix / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    for _ in range(_STEPS):
        found = 1.5 * found - 0.5 * torch.linalg.multi_dot((found, found.mT, found))
    return found
