"""A split that follows from what each file holds, so that files added later move none towards the test split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def cut(labels: Sequence[int], digests: Sequence[str], edges: Sequence[float]) -> list[list[int]]:
    """Divide samples among splits by their digests, class by class.

    A digest, read as a fraction in [0, 1), is a draw that belongs to the content for good: copies of a file, renamed
    or not, stay together. The first split takes what lies below the first edge, the next one what is left below the
    second, and the last keeps the rest. A split that would lack a class takes the smallest digest left of it. So
    when files are added, a sample stays where it is or moves to a *later* split, never to an earlier one: what was
    smallest can only be undercut.

    Args:
        labels: Of each sample.
        digests: Of each sample, hexadecimal.
        edges: Increasing, in (0, 1).

    Returns:
        The positions in each of the ``len(edges) + 1`` splits, each in increasing order; where a class has too few
        different files for the cuts, the later splits lack it.
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
