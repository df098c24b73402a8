"""Split files by their content, so that adding files never moves a training sample into validation or test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def cut(labels: Sequence[int], digests: Sequence[str], edges: Sequence[float]) -> list[list[int]]:
    """Divide samples among splits by their digests, class by class.

    A digest, read as a fraction in [0, 1), acts as a random number that depends only on the content, so copies of a
    file are in the same split, whatever their names. The first split takes the samples whose fraction is below the
    first edge, the second takes those of the others that are below the second edge, and so on; the last split takes
    the rest. A split that would lack a class takes the remaining sample of that class with the smallest digest.
    Therefore, when files are added, a sample stays in its split or moves to a *later* one: a new file can replace the
    smallest digest, but it cannot make another one the smallest.

    Args:
        labels: Label of each sample.
        digests: Digest of each sample, hexadecimal.
        edges: Increasing, in (0, 1).

    Returns:
        The positions in each of the ``len(edges) + 1`` splits, in increasing order. If a class has fewer different
        files than splits, the later splits lack it.
    """
    splits: list[list[int]] = [[] for _ in range(len(edges) + 1)]
    members: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        members[label].append(position)
    for left in members.values():
        for split, edge in zip(splits, edges, strict=False):
            if not left:
                break
            smallest = min(digests[position] for position in left)
            taken = {p for p in left if _fraction(digests[p]) < edge or digests[p] == smallest}
            split += taken
            left = [p for p in left if p not in taken]
        splits[-1] += left
    return [sorted(split) for split in splits]


def _fraction(digest: str) -> float:
    return int(digest[:16], 16) / 2.0**64
