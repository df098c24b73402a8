"""Fixed subsets of a data set in which every class keeps its proportion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# All runs must use the same splits, so this seed is neither an option nor the seed of a run.
_SPLIT_SEED = 20220717


def stratified_head(labels: Tensor, size: int) -> Tensor:
    """Choose ``size`` samples, the first of each class, such that each class keeps its proportion.

    The k-th sample (from 0) of a class with m samples gets the value k / m, and the ``size`` samples with the smallest
    values are chosen. So every class gives its first ``ceil(t m)`` samples, up to ties, for one common t, and no class
    is empty if ``size`` is at least the number of classes.

    Args:
        labels: Shape ``(n,)``, int64.
        size: Number of samples to choose, at most n.

    Returns:
        Their indices in increasing order, shape ``(size,)``.
    """
    counts = torch.bincount(labels)
    by_class = labels.argsort(stable=True)
    sorted_labels = labels[by_class]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[sorted_labels]
    # Two different values k / m and k' / m' differ by at least 1 / (m m'), far above the rounding of float64.
    turn = rank.double() / counts[sorted_labels]
    return by_class[turn.argsort(stable=True)[:size]].sort().values


def stratified_holdout(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Divide samples at random, with a fixed seed, into those that are kept and ``size`` that are held out.

    Args:
        labels: Shape ``(n,)``, int64.
        size: Number of samples to hold out; each class keeps its proportion.

    Returns:
        The indices kept and the indices held out, each in increasing order.
    """
    # NumPy guarantees that this legacy stream never changes; the newer generators have no such guarantee.
    shuffle = torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(len(labels)))
    held_out = shuffle[stratified_head(labels[shuffle], size)].sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    return kept.nonzero().squeeze(1), held_out


def limited(indices: Tensor, labels: Tensor, limit: int | None) -> Tensor:
    """Keep at most ``limit`` of the indices, chosen by `stratified_head`.

    Args:
        indices: Indices of some samples, shape ``(m,)``.
        labels: Labels of all samples, shape ``(n,)``.
        limit: Largest number of indices to keep; None keeps all.
    """
    if limit is None or limit >= len(indices):
        return indices
    return indices[stratified_head(labels[indices], limit)]
