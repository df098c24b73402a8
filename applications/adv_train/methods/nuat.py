"""NuAT: training keeps clean and perturbed outputs together in the nuclear norm (Sriramanan et al., NeurIPS 2021)."""

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

#: Steps of the Newton-Schulz iteration. Each multiplies a small singular value by about 1.5, and 1.5^40 is 10^7.
_STEPS = 45


@METHODS.register("nuat")
@dataclass(frozen=True, kw_only=True)
class NuAT(Guided):
    """Clean cross-entropy plus the nuclear norm of the change that one guided sign step makes in the batch's outputs.

    D is the sum of the singular values of the matrix `f(x + z) - f(x)`, shape `(batch, classes)`, divided by the batch
    size; w rises linearly from 0 over the run. Source: "Towards efficient and effective adversarial training" (NeurIPS
    2021). The default `coefficient` is that of its variant NuAT-WA, which raises w once an epoch, not once a step.

    Attributes:
        coefficient: weight w of the penalty at the end of the run.
    """

    coefficient: NotNegative = 4.0

    def weight(self, moment: Moment | None) -> Coefficient:
        return rising(self.coefficient, moment)

    def distance(self, logits: Tensor, clean: Tensor, share: Share) -> Tensor:
        return (nuclear_norm(logits - clean, share) / len(logits)).expand(len(logits))


def nuclear_norm(matrix: Tensor, share: Share | None = None) -> Tensor:
    """Return the sum of the singular values of a matrix A, shape `()`; it can be differentiated once.

    The norm is `<A, P>` and its gradient is P, where P is A with each singular value replaced by 1. P is the limit of
    the Newton-Schulz iteration `X <- X (3 - X^T X) / 2` from `A / |A|`. The iteration uses matrix products alone,
    whereas a singular value decomposition on a GPU makes the host wait. It does not converge for singular values below
    10^-6 of the largest, which therefore contribute less than their value. If the rows are one rank's part of a batch,
    the sum of the returned values over the ranks is the norm of the whole matrix.
    """
    with torch.no_grad():
        share = share or Share(len(matrix))
        polar = at_full_resolution(_polar, share.whole_of(matrix))[share.rows]
    norm: Tensor = (matrix * polar).sum()
    return norm


def _polar(matrix: Tensor) -> Tensor:
    # No singular value exceeds the Frobenius norm, so all start in [0, 1], where the iteration converges.
    found: Tensor = matrix / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    for _ in range(_STEPS):
        found = 1.5 * found - 0.5 * torch.linalg.multi_dot((found, found.mT, found))
    return found
