"""Data hyper-cleaning: some digits have wrong labels, and clean held-out data determine a weight for each.

    minimise  loss(z*(theta)) held out,  z*(theta) = argmin  mean_i sigmoid(theta_i) loss_i(z) + ridge/2 |z|^2

Truth: Newton's method for z and the dense implicit gradient, both in NumPy. A second table shows what damping does
where there is no ridge, the Hessian is nearly singular and the lower problem is only roughly solved.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import blo
from benchmarks.answers._compare import Answers, numpy
from benchmarks.answers._digits import Array, Softmax, Split, accuracy, digits, one_hot
from benchmarks.registry import Cell, Outcome, Setting, Table, benchmark

RIDGE, RATE, STEPS = 1e-3, 100.0, 5
ROUGH = blo.ProjectedGradient(max_steps=50)


class Data(NamedTuple):
    """Training data with wrong labels where `wrong` is true, clean held-out data, test data."""

    classes: int
    train: Split
    wrong: npt.NDArray[np.bool_]
    held: Split
    test: Split


def draw(setting: Setting) -> Data:
    """Draw the data; two in five training samples get a random label."""
    sizes = (60, 60, 60) if setting.quick else (600, 600, 597)
    classes = 3 if setting.quick else 10
    train, held, test = digits(sizes, setting.seed, classes)
    random = np.random.default_rng(setting.seed)
    drawn = np.where(random.random(sizes[0]) < 0.4, random.integers(0, classes, sizes[0]), train.y)
    return Data(classes, Split(train.x, drawn), drawn != train.y, held, test)


def problem(data: Data, ridge: float, device: torch.device) -> dict[str, Any]:
    """State the problem as arguments for blo; every sample starts with a weight of one half."""
    x, y, x_held, y_held = (torch.as_tensor(part, device=device) for part in (*data.train, *data.held))

    def train(theta: Tensor, z: Tensor) -> Tensor:
        losses = cross_entropy(x @ z, y, reduction="none")
        return (theta.sigmoid() * losses).mean() + 0.5 * ridge * z.square().sum()

    return {
        "upper": lambda theta, z: cross_entropy(x_held @ z, y_held),
        "lower": blo.LowerProblem(train),
        "theta": x.new_zeros(len(x)),
        "z0": x.new_zeros(x.shape[1], data.classes),
    }


def truth(data: Data, theta: Array, z: Array) -> tuple[float, Array, Array]:
    """Return the held-out loss, its gradient in theta and the lower solution, by a solver started at z."""
    weight = 1 / (1 + np.exp(-theta))
    n = len(theta)
    train = Softmax(data.train.x, one_hot(data.train.y, data.classes), weight / n, RIDGE)
    held = Softmax(
        data.held.x, one_hot(data.held.y, data.classes), np.full(len(data.held.y), 1 / len(data.held.y)), 0.0
    )
    z = train.minimise(z)
    q = np.linalg.solve(train.hessian(z), held.gradient(z).ravel()).reshape(z.shape)
    slope = -weight * (1 - weight) / n * np.sum((train.x @ q) * (train.probabilities(z) - train.target), axis=1)
    return float(held.weight @ held.losses(z)), slope, z


@benchmark("answer-hypercleaning", "Data hyper-cleaning on digits against the dense implicit gradient")
def run(setting: Setting) -> Outcome:
    data = draw(setting)
    given = problem(data, RIDGE, setting.device)
    at = blo.value_and_hypergrad(**given)
    found = blo.fit(**given, optimizer=partial(torch.optim.SGD, lr=RATE), steps=STEPS)
    theta, z = np.zeros(len(data.train.y)), np.zeros((data.train.x.shape[1], data.classes))
    values, slope = [], theta
    for step in range(STEPS):
        value, gradient, z = truth(data, theta, z)
        slope = gradient if step == 0 else slope
        values.append(value)
        theta = theta - RATE * gradient
    answers = Answers()
    answers.add("hypergradient", at.grad, slope)
    answers.add(f"held-out losses of {STEPS} steps", found.values, np.array(values))
    answers.add(f"theta after {STEPS} steps", found.theta, theta)
    return answers.outcome("Hyper-cleaning", more=[damped(data, setting)])


def damped(data: Data, setting: Setting) -> Table:
    """Run hyper-cleaning without a ridge and with a lower solver that stops early, for several dampings."""
    given = problem(data, 0.0, setting.device)
    with torch.no_grad():
        unclean = blo.argmin(given["lower"], given["theta"], given["z0"], solver=ROUGH, on_failure="ignore")
    rows: list[list[Cell]] = [["no cleaning", None, accuracy(data.test, numpy(unclean)), None, None]]
    for damping in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
        found = blo.fit(
            **given, optimizer=partial(torch.optim.Adam, lr=0.3), steps=2 if setting.quick else 40,
            solver=ROUGH, gradient=blo.Implicit(blo.CG(max_iter=50, damping=damping)),
            on_failure="ignore",
        )  # fmt: skip
        weight = numpy(found.theta.sigmoid())
        rows.append([f"damping {damping:g}", float(found.values[-1]), accuracy(data.test, numpy(found.z)),
                     float(weight[~data.wrong].mean()), float(weight[data.wrong].mean())])  # fmt: skip
    columns = (
        "lower problem without ridge",
        "held-out loss",
        "test accuracy",
        "weight of right labels",
        "of wrong ones",
    )
    return Table(
        "Damping", columns, rows, ["50 gradient steps, then at most 50 of conjugate gradients; 40 steps of Adam."]
    )
