"""Data in two parts: one for training, one held out."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Data(NamedTuple, Generic[T]):
    """Features of shape (samples, d), and targets or labels of shape (samples,); arrays or tensors."""

    x: T
    y: T
    x_held: T
    y_held: T
