"""Fixed cuts of a data set in which every class keeps its share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Part of what "the same data" means between two runs, so it is neither an option nor the run's own seed.
_SPLIT_SEED = 20220717


def stratified_head(labels: Tensor, size: int) -> Tensor:
    """Choose ``size`` samples, the first of each class, with the classes in proportion.

    A sample that is the k-th of its class (from 0) among m waits for its turn k / m. So from every class the
    first ``ceil(t m)`` samples are taken for one common t, and as soon as ``size`` reaches the number of
    classes no class is empty.

    Args:
        labels: Shape ``(n,)``, int64.
        size: How many to choose, at most n.

    Returns:
        Their indices in increasing order, shape ``(size,)``.
    """
    counts = torch.bincount(labels)
    by_class = labels.argsort(stable=True)
    sorted_labels = labels[by_class]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[sorted_labels]
    # In float64 two turns that differ do so by at least 1 / (m m'), far above the rounding.
    turn = rank.double() / counts[sorted_labels]
    return by_class[turn.argsort(stable=True)[:size]].sort().values


def stratified_holdout(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Divide samples at random, but always alike, into those kept and ``size`` held out.

    Args:
        labels: Shape ``(n,)``, int64.
        size: How many to hold out, from every class in proportion.

    Returns:
        The indices kept and the indices held out, each in increasing order.
    """
    # NumPy promises that this legacy stream never changes; no other generator at hand does.
    shuffle = torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(len(labels)))
    held_out = shuffle[stratified_head(labels[shuffle], size)].sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    return kept.nonzero().squeeze(1), held_out


def limited(indices: Tensor, labels: Tensor, limit: int | None) -> Tensor:
    """Keep at most ``limit`` of the indices, chosen by `stratified_head`; all of them without a limit.

    Args:
        indices: Of some of the samples, shape ``(m,)``.
        labels: Of all samples, shape ``(n,)``.
        limit: How many to keep, or None.
    """
    if limit is None or limit >= len(indices):
        return indices
    return indices[stratified_head(labels[indices], limit)]
