"""scikit-learn's handwritten digits, and softmax regression on them in NumPy with dense derivatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Pixels in [0, 1] with a constant appended, shape (samples, 65); labels, shape (samples,)."""

    x: Array
    y: Labels


def digits(sizes: tuple[int, ...], seed: int, classes: int = 10) -> list[Split]:
    """Return disjoint random splits of these sizes, of the digits below `classes`."""
    x, y = load_digits(n_class=classes, return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))[: sum(sizes)]
    x, y = np.hstack([x[order] / 16, np.ones((len(order), 1))]), y[order].astype(np.int64)
    edges = np.cumsum(sizes)[:-1]
    return [Split(*pair) for pair in zip(np.split(x, edges), np.split(y, edges), strict=True)]


class Softmax(NamedTuple):
    """`sum_i weight_i cross_entropy(x_i z, target_i) + ridge/2 |z|^2` with z of shape (features, classes).

    Targets of shape (samples, classes) are probabilities.
    """

    x: Array
    target: Array
    weight: Array
    ridge: float

    def probabilities(self, z: Array) -> Array:
        """Return the model's probabilities, shape (samples, classes)."""
        found: Array = np.exp(_log_softmax(self.x @ z))
        return found

    def losses(self, z: Array) -> Array:
        """Return the cross-entropy of each sample."""
        found: Array = -np.sum(self.target * _log_softmax(self.x @ z), axis=1)
        return found

    def gradient(self, z: Array) -> Array:
        """Return the gradient, with the shape of z."""
        off = self.weight[:, None] * (self.probabilities(z) - self.target)
        found: Array = self.x.T @ off + self.ridge * z
        return found

    def hessian(self, z: Array) -> Array:
        """Return the Hessian over the entries of z in row order, dense."""
        p = self.probabilities(z)
        d, c = z.shape
        bends = np.einsum("nc,ck->nck", p, np.eye(c)) - np.einsum("nc,nk->nck", p, p)
        weighted = (self.weight[:, None] * self.x)[:, :, None] * self.x[:, None, :]
        dense = weighted.reshape(-1, d * d).T @ bends.reshape(-1, c * c)
        found: Array = dense.reshape(d, d, c, c).transpose(0, 2, 1, 3).reshape(d * c, d * c)
        return found + self.ridge * np.eye(d * c)

    def minimise(self, z: Array) -> Array:
        """Return the minimiser, by Newton's method from z.

        Raises:
            RuntimeError: if Newton's method does not converge.
        """
        for _ in range(100):
            slope = self.gradient(z)
            if np.abs(slope).max() < 1e-14:
                return z
            step = np.linalg.solve(self.hessian(z), slope.ravel()).reshape(z.shape)
            rate, now = 1.0, self._value(z)
            while self._value(z - rate * step) > now + 1e-14 and rate > 1e-4:
                rate /= 2
            z = z - rate * step
            if np.abs(step).max() < 1e-13 * max(1.0, np.abs(z).max()):
                return z
        raise RuntimeError("Newton's method did not converge; the truth is not known.")

    def _value(self, z: Array) -> float:
        return float(self.weight @ self.losses(z) + 0.5 * self.ridge * np.sum(z * z))


def one_hot(labels: Labels, classes: int) -> Array:
    """Return labels as probabilities, shape (samples, classes)."""
    return np.eye(classes)[labels]


def accuracy(split: Split, z: Array) -> float:
    """Return the share of samples classified correctly."""
    return float(np.mean(np.argmax(split.x @ z, axis=1) == split.y))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
