"""Benchopt's logistic regression with one penalty for each coordinate, on a data set of scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.answers._finite_sum import Batch, FiniteSum

#: Newton steps for a lower solution; on these data five to eight reach the rounding error.
NEWTON_STEPS = 25


def logistic(seed: int, *, examples: int = 256, batch: int = 16) -> FiniteSum:
    """Return the problem on the breast cancer data: 569 patients, 30 standardised features.

    theta holds the logarithms of the penalties: the lower objective is the logistic loss of the training examples plus
    `sum(exp(theta) * z**2) / 2`, the upper one the loss of equally many others. This is the recipe of benchopt for
    ijcnn1 (datasets/ijcnn1.py), with the same start.
    """
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[: 2 * examples]
    x, y = torch.as_tensor(features)[order], 2.0 * torch.as_tensor(labels)[order].double() - 1
    x = (x - x.mean(0)) / x.std(0)
    signed = x * y[:, None]
    train, held = signed[:examples], signed[examples:]
    size = x.shape[1]
    theta0 = torch.rand(size, generator=generator, dtype=torch.float64).log()
    z0 = torch.randn(size, generator=generator, dtype=torch.float64)

    def slope(data: Tensor, z: Tensor) -> Tensor:
        return -torch.sigmoid(-z @ data.T) @ data / len(data)

    def hessian(theta: Tensor, z: Tensor) -> Tensor:
        weight = torch.sigmoid(z @ train.T) * torch.sigmoid(-z @ train.T) / len(train)
        return (weight[:, :, None] * train).transpose(1, 2) @ train + torch.diag_embed(theta.exp())

    def solve(thetas: Tensor) -> Tensor:
        z = torch.zeros_like(thetas)
        for _ in range(NEWTON_STEPS):
            z = z - torch.linalg.solve(hessian(thetas, z), slope(train, z) + thetas.exp() * z)
        return z

    def hypergradient(thetas: Tensor) -> Tensor:
        z = solve(thetas)
        q = torch.linalg.solve(hessian(thetas, z), slope(held, z))
        found: Tensor = -thetas.exp() * z * q
        return found

    eigenvalues = torch.linalg.eigvalsh(hessian(theta0[None], solve(theta0[None])))[0]
    return FiniteSum(
        "logistic regression, breast cancer",
        lambda theta, z, data: _loss(z, data),
        lambda theta, z, data: _loss(z, data) + (theta.exp() * z.square()).sum() / 2,
        (held.unflatten(0, (-1, batch)),),
        (train.unflatten(0, (-1, batch)),),
        theta0,
        z0,
        solve,
        hypergradient,
        lambda batches, times: tuple(part.unflatten(0, (-1, times)).flatten(1, 2) for part in batches),
        False,
        (float(eigenvalues[0]), float(eigenvalues[-1])),
    )


def _loss(z: Tensor, batch: Batch) -> Tensor:
    (signed,) = batch
    return softplus(-(signed @ z.unsqueeze(-1)).squeeze(-1)).mean(-1).sum()
