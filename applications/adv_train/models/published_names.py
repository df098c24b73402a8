"""Names that weights have in the code of others, for networks that are the same."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

# Of RobustBench's PreActResNet and ResNet (`layer1.0.conv1`), of its WideResNet (`block1.layer.0.conv1`), and of the
# networks of Gowal et al. (2020) that it holds (`layer.0.block.0.conv_0`).
_BLOCK = re.compile(r"(?:layer|block)(\d+)\.(?:layer\.)?(\d+)\.(.+)|layer\.(\d+)\.block\.(\d+)\.(.+)")
_INSIDE = {"convShortcut": "shortcut", "batchnorm_0": "bn1", "conv_0": "conv1", "batchnorm_1": "bn2", "conv_1": "conv2"}
_OUTSIDE = {
    "conv1": "stem",
    "init_conv": "stem",
    "bn1": "bn",
    "batchnorm": "bn",
    "linear": "head",
    "fc": "head",
    "logits": "head",
    "mu": "normalise.mean",
    "sigma": "normalise.std",
}
#: A group of blocks that one of the published codes makes and never calls.
UNUSED = "sub_block1."


def our_names(keys: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Return our name of each key that our network does not have and that of others is known to have.

    Args:
        keys: Of a state dict, without prefixes.
        wanted: The keys of our network.
    """
    strange = [key for key in keys if key not in wanted]
    places = {key: _place(key) for key in strange}
    depths: dict[int, int] = {}
    for place in places.values():
        if place is not None:
            stage, index, _ = place
            depths[stage] = max(depths.get(stage, 0), index + 1)
    found = {}
    for key in strange:
        place = places[key]
        if place is None:
            first, dot, rest = key.partition(".")
            name = _OUTSIDE.get(first, first) + dot + rest
        else:
            stage, index, inside = place
            before = sum(depth for other, depth in depths.items() if other < stage)
            first, dot, rest = inside.partition(".")
            name = f"blocks.{before + index}.{_INSIDE.get(first, first)}{dot}{rest}"
            if name not in wanted:
                name = name.replace(".shortcut.0.", ".shortcut.")
        if name in wanted:
            found[key] = name
    return found


def _place(key: str) -> tuple[int, int, str] | None:
    """Return stage, block in the stage and name inside the block."""
    match = _BLOCK.fullmatch(key)
    if match is None:
        return None
    stage, index, inside = (group for group in match.groups() if group is not None)
    return int(stage), int(index), inside
