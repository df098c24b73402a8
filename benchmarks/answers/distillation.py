"""Dataset distillation: learn ten images, one a class, so that a classifier trained on them does well on real digits.

    minimise  loss(z*(theta)) on real digits,  z*(theta) = argmin mean_i loss_i(theta, z) + ridge/2 |z|^2

Truth: Newton's method for z and the dense implicit gradient, both in NumPy.
Source: Wang, Zhu, Torralba and Efros, 2018, with an implicit in place of an unrolled gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.answers._digits import Array, Softmax, Split, accuracy, digits, one_hot
from benchmarks.registry import Cell, Outcome, Setting, Table, benchmark

RIDGE, RATE, STEPS = 1e-2, 1.0, 5


def problem(real: Split, images: Array, device: torch.device) -> dict[str, Any]:
    """State the problem as arguments for blo, starting from one real image of each class, shape (classes, 64)."""
    x, y, theta = (torch.as_tensor(part, device=device) for part in (*real, images))
    labels = torch.arange(len(images), device=device)

    def train(theta: Tensor, z: Tensor) -> Tensor:
        return cross_entropy(pad(theta, (0, 1), value=1.0) @ z, labels) + 0.5 * RIDGE * z.square().sum()

    return {
        "upper": lambda theta, z: cross_entropy(x @ z, y),
        "lower": blo.LowerProblem(train),
        "theta": theta,
        "z0": x.new_zeros(x.shape[1], len(images)),
    }


def truth(real: Split, images: Array, z: Array) -> tuple[float, Array, Array]:
    """Return the loss on real digits, its gradient in the images and the lower solution, by a solver started at z."""
    classes = len(images)
    train = Softmax(np.hstack([images, np.ones((classes, 1))]), np.eye(classes), np.full(classes, 1 / classes), RIDGE)
    held = Softmax(real.x, one_hot(real.y, classes), np.full(len(real.y), 1 / len(real.y)), 0.0)
    z = train.minimise(z)
    q = np.linalg.solve(train.hessian(z), held.gradient(z).ravel()).reshape(z.shape)
    p = train.probabilities(z)
    turned = train.x @ q
    # Derivative of <q, gradient> in each image: through the image itself, and through its probabilities.
    through = p * (turned - np.sum(p * turned, axis=1, keepdims=True))
    slope = -((p - train.target) @ q.T + through @ z.T) / classes
    return float(held.weight @ held.losses(z)), slope[:, :-1], z


@benchmark("answer-distillation", "Dataset distillation on digits against the dense implicit gradient")
def run(setting: Setting) -> Outcome:
    classes, size = (3, 60) if setting.quick else (10, 600)
    real, test = digits((size, size // 2), setting.seed, classes)
    images = np.stack([real.x[np.flatnonzero(real.y == label)[0], :-1] for label in range(classes)])
    given = problem(real, images, setting.device)
    at = blo.value_and_hypergrad(**given)
    found = blo.fit(**given, optimizer=partial(torch.optim.SGD, lr=RATE), steps=STEPS)
    theta, z, values, slopes = images, np.zeros((65, classes)), [], []
    for _ in range(STEPS):
        value, slope, z = truth(real, theta, z)
        values.append(value)
        slopes.append(slope)
        theta = theta - RATE * slope
    answers = Answers()
    answers.add("gradient in the images", at.grad, slopes[0])
    answers.add(f"losses of {STEPS} steps", found.values, np.array(values))
    answers.add(f"images after {STEPS} steps", found.theta, theta)
    return answers.outcome("Distillation", more=[distilled(given, test, setting)])


def distilled(given: dict[str, Any], test: Split, setting: Setting) -> Table:
    """Distil for longer and return the test accuracies of classifiers trained on the images."""
    steps = 2 if setting.quick else 60
    found = blo.fit(**given, optimizer=partial(torch.optim.Adam, lr=0.05), steps=steps)
    with torch.no_grad():
        before = blo.argmin(given["lower"], given["theta"], given["z0"])
    rows: list[list[Cell]] = [
        ["one real image a class", accuracy(test, numpy(before))],
        ["as many distilled", accuracy(test, numpy(found.z))],
    ]
    return Table("A classifier trained on", ("images", "test accuracy"), rows, [f"{steps} steps of Adam."])
