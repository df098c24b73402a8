"""Bilevel problems whose lower level is solved by a fixed number of gradient steps, and their floors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.registry import Setting


@dataclass(frozen=True, eq=False)
class Cleaning:
    """Data hyper-cleaning: weights of training examples, some mislabelled, chosen by the validation loss.

    The lower objective is `mean(sigmoid(theta) loss(z)) + decay |z|^2` of multinomial logistic regression.

    Attributes:
        train: inputs and labels.
        held: inputs and labels of the validation set.
        theta: the initial logits, one for each training example, all zero.
        z0: the initial weights, flat, all zero.
        step: step size of gradient descent on the lower objective.
        noisy: whether each label was replaced.
    """

    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    theta: Tensor
    z0: Tensor
    step: float
    noisy: Tensor
    decay: float = 5e-4

    def inner(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the lower objective."""
        inputs, labels = self.train
        losses = cross_entropy(inputs @ z.reshape(-1, 10), labels, reduction="none")
        return (theta.sigmoid() * losses).mean() + self.decay * z.square().sum()

    def outer(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the validation loss."""
        inputs, labels = self.held
        return cross_entropy(inputs @ z.reshape(-1, 10), labels)


def digits(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits in random order, inputs within [0, 1] with a column of ones, and labels.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=setting.generator())
    inputs = torch.from_numpy(pixels / 16.0)[order]
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    return inputs.to(setting.device, setting.dtype), torch.from_numpy(labels)[order].to(setting.device)


def cleaning(setting: Setting) -> Cleaning:
    """Return hyper-cleaning on the digits: 1,200 for training, with 40 % random labels; the others are held out."""
    inputs, labels = digits(setting)
    count = 60 if setting.quick else 1200
    generator = setting.generator()
    noisy = (torch.rand(count, generator=generator) < 0.4).to(setting.device)
    wrong = torch.randint(0, 10, (count,), generator=generator).to(setting.device)
    train = inputs[:count], torch.where(noisy, wrong, labels[:count])
    held = inputs[count:], labels[count:]
    theta, z0 = inputs.new_zeros(count), inputs.new_zeros(inputs.shape[1] * 10)
    return Cleaning(train, held, theta, z0, 2.0, noisy)


def unroll(problem: Cleaning, steps: int) -> Tensor:
    """Return the floor of the unrolled hypergradient: a loop of recorded gradients and one backward pass."""
    theta, z = problem.theta.detach().requires_grad_(), problem.z0.detach().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(problem.inner(theta, z), z, create_graph=True)
        z = z - problem.step * slope
    (found,) = torch.autograd.grad(problem.outer(theta, z), theta)
    return found


def descend(problem: Cleaning, theta: Tensor, steps: int) -> Tensor:
    """Return the last iterate of plain gradient descent."""
    z = problem.z0
    for _ in range(steps):
        at = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.inner(theta, at), at)
        z = z - problem.step * slope
    return z.detach()


def dense(problem: Cleaning, steps: int) -> Tensor:
    """Return the implicit hypergradient at the last iterate of gradient descent, by a dense Hessian."""
    z = descend(problem, problem.theta, steps)
    hessian = torch.func.hessian(lambda at: problem.inner(problem.theta, at))(z)
    v = torch.func.grad(lambda at: problem.outer(problem.theta, at))(z)
    q = torch.linalg.solve(hessian, v)
    slope = torch.func.grad(problem.inner, argnums=1)
    pullback = torch.func.vjp(lambda theta: slope(theta, z), problem.theta)[1]
    found: Tensor = pullback(-q)[0]
    return found


def implicit(problem: Cleaning, steps: int, products: int) -> Tensor:
    """Return the floor of the implicit hypergradient: gradient descent, then CG on one retained graph."""
    theta = problem.theta.detach().requires_grad_()
    z = descend(problem, problem.theta, steps).requires_grad_()
    (r,) = torch.autograd.grad(problem.outer(theta, z), z)
    (slope,) = torch.autograd.grad(problem.inner(theta, z), z, create_graph=True)
    x, p, rr = torch.zeros_like(r), r, r @ r
    for _ in range(products):
        (q,) = torch.autograd.grad(slope, z, p, retain_graph=True)
        step = rr / (p @ q)
        x, r = x + step * p, r - step * q
        last, rr = rr, r @ r
        p = r + rr / last * p
    (found,) = torch.autograd.grad(slope, theta, -x)
    return found
