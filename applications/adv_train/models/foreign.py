"""The names that other code bases, above all RobustBench's checkpoints, give to the layers of our networks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from torch import nn

from adv_train.errors import UserError
from adv_train.models.wide_resnet import WideResNet

NORMALISATION: Final = ("normalise.mean", "normalise.std")
#: Layers outside blocks. `bn1` is the BatchNorm of the stem in a ResNet and the last one in a wide ResNet: our `bn`.
_LAYERS: Final = {
    "conv1": "stem",
    "init_conv": "stem",
    "bn1": "bn",
    "batchnorm": "bn",
    "linear": "head",
    "fc": "head",
    "logits": "head",
    "mu": NORMALISATION[0],
    "mean": NORMALISATION[0],
    "sigma": NORMALISATION[1],
    "std": NORMALISATION[1],
}
#: Layers within blocks.
_INSIDE: Final = {
    "convShortcut": "shortcut",
    "batchnorm_0": "bn1",
    "conv_0": "conv1",
    "batchnorm_1": "bn2",
    "conv_1": "conv2",
}
#: A block by its stage and its number: of a (pre-activation) ResNet, of a wide ResNet, and of one by Gowal et al.
_BLOCK: Final = re.compile(r"(?:layer(\d)|block(\d)\.layer|layer\.(\d)\.block)\.(\d+)\.(\w+)\.(.+)")
#: A copy of the first stage that the code of TRADES makes and never applies.
_UNUSED: Final = "sub_block1."


def translation(names: Collection[str], wanted: Collection[str]) -> dict[str, str | None]:
    """Map the names of a foreign state dict to the names of our model.

    Args:
        names: Names in the foreign state dict.
        wanted: Names in the state dict of our model.

    Returns:
        Our name for each foreign name; None for an entry that no network uses. A name without a counterpart does not
        change.
    """
    if "stem.weight" not in wanted:
        nested = {name: f"network.{name}" for name in names}  # torchvision's own weights, in our wrapper
        return {name: ours if ours in wanted else name for name, ours in nested.items()}
    order = _order(names)
    found = {name: _ours(name, order, wanted) for name in names if name not in wanted}
    return {name: ours if ours is None or ours in wanted else name for name, ours in found.items()}


def check_padding(model: nn.Module, names: Iterable[str], path: object) -> None:
    """Check that the model has the padding that the names of the weights imply.

    Raises:
        UserError: If it has not; the message names the right padding.
    """
    if not isinstance(model, WideResNet):
        return
    told = {"init_conv": "end", "block1": "even"}
    for name in names:
        needed = told.get(name.partition(".")[0], model.padding)
        if needed != model.padding:
            raise UserError(
                f"The weights in `{path}` belong to a network with padding={needed}, but the model has "
                f"padding={model.padding}."
            )


def _order(names: Iterable[str]) -> dict[tuple[int, int], int]:
    """Return the index of each block, counted through all stages, by its stage and its number there."""
    matches = [match for name in names if (match := _BLOCK.fullmatch(name))]
    return {place: index for index, place in enumerate(sorted({_place(match) for match in matches}))}


def _place(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1] or match[2] or match[3]), int(match[4])


def _ours(name: str, order: dict[tuple[int, int], int], wanted: Collection[str]) -> str | None:
    if name.startswith(_UNUSED):
        return None
    if match := _BLOCK.fullmatch(name):
        layer, rest = _INSIDE.get(match[5], match[5]), match[6]
        ours = f"blocks.{order[_place(match)]}.{layer}.{rest}"
        # A shortcut without BatchNorm is a convolution in our models, but a sequence of one convolution elsewhere.
        return ours if ours in wanted else ours.replace(".shortcut.0.", ".shortcut.")
    layer, dot, rest = name.partition(".")
    return f"{_LAYERS.get(layer, layer)}{dot}{rest}"
