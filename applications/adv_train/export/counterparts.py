"""Networks of RobustBench that compute what ours do, and the names that they give to the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import accumulate
from typing import Final

from torch import nn

from adv_train.errors import UserError
from adv_train.models.foreign import NORMALISATION
from adv_train.models.preact_blocks import PreActBottleneck
from adv_train.models.preact_resnet import PreActResNet
from adv_train.models.resnet import Bottleneck, ResNet
from adv_train.models.wide_resnet import WideResNet

_PLACE: Final = "robustbench.model_zoo.architectures"


@dataclass(frozen=True)
class Counterpart:
    """A network there.

    Attributes:
        title: What its leaderboard calls the architecture.
        module: Where its class is.
        names: What is imported from there, the class first.
        arguments: Of the class, as code.
        layers: What parts outside the blocks are called, by our names.
        block: The name of a block, with its stage and its number in braces, counted from 1 and from 0.
        inside: What parts of blocks are called that have other names there.
        depths: Blocks in each stage.
    """

    title: str
    module: str
    names: Sequence[str]
    arguments: str
    layers: Mapping[str, str]
    block: str
    inside: Mapping[str, str]
    depths: Sequence[int]

    def name(self, ours: str) -> str:
        """Translate the name of an entry of the state dict."""
        if ours in self.layers:
            return self.layers[ours]
        part, _, rest = ours.partition(".")
        if part != "blocks":
            return f"{self.layers[part]}.{rest}"
        number, layer, rest = rest.split(".", 2)
        ends = list(accumulate(self.depths))
        stage = next(index for index, end in enumerate(ends) if int(number) < end)
        place = self.block.format(stage=stage + 1, stage0=stage, number=int(number) - ends[stage] + self.depths[stage])
        return f"{place}.{self.inside.get(layer, layer)}.{rest}"


@singledispatch
def counterpart(model: nn.Module, classes: int) -> Counterpart:
    """Find the network there.

    Args:
        model: One of ours.
        classes: Number of logits.

    Raises:
        UserError: When RobustBench has none that computes the same.
    """
    raise UserError(
        f"RobustBench has no counterpart of {type(model).__name__}: the form robustbench takes preact-resnet, resnet "
        "and wrn models."
    )


@counterpart.register
def _(model: PreActResNet, classes: int) -> Counterpart:
    activated = {block.activated_shortcut for block in model.blocks if isinstance(block.shortcut, nn.Conv2d)}
    bottleneck = type(model).block is PreActBottleneck
    _require(model, nn.ReLU, "activation=relu")
    if model.stem.out_channels != 64:
        raise UserError(f"RobustBench has no pre-activation ResNet of base_width {model.stem.out_channels}, but of 64.")
    if bottleneck and activated != {True}:
        raise UserError("RobustBench has no PreActBottleneck with shortcut=raw.")
    block = "PreActBottleneck" if bottleneck else "PreActBlockV2" if activated == {True} else "PreActBlock"
    last = isinstance(model.bn, nn.BatchNorm2d)
    return Counterpart(
        title=f"PreActResNet-{_layers(model.depths, bottleneck)}",
        module=f"{_PLACE}.resnet",
        names=("PreActResNet", block),
        arguments=f"{block}, {list(model.depths)}, num_classes={classes}, bn_before_fc={last}",
        layers={"stem": "conv1", "bn": "bn", "head": "linear", **_normalisation("mu", "sigma")},
        block="layer{stage}.{number}",
        inside={"shortcut": "shortcut.0"},
        depths=model.depths,
    )


@counterpart.register
def _(model: ResNet, classes: int) -> Counterpart:
    bottleneck = type(model).block is Bottleneck
    _require(model, nn.ReLU, "activation=relu")
    block = "Bottleneck" if bottleneck else "BasicBlock"
    return Counterpart(
        title=f"ResNet-{_layers(model.depths, bottleneck)}",
        module=f"{_PLACE}.resnet",
        names=("ResNet", block),
        arguments=f"{block}, {list(model.depths)}, num_classes={classes}",
        layers={"stem": "conv1", "bn": "bn1", "head": "linear", **_normalisation("mu", "sigma")},
        block="layer{stage}.{number}",
        inside={},
        depths=model.depths,
    )


@counterpart.register
def _(model: WideResNet, classes: int) -> Counterpart:
    title = f"WideResNet-{model.depth}-{model.factor}"
    depths = ((model.depth - 4) // 6,) * 3
    if model.padding == "even":
        _require(model, nn.ReLU, "activation=relu, or padding=end")
        return Counterpart(
            title=title,
            module=f"{_PLACE}.wide_resnet",
            names=("WideResNet",),
            arguments=f"depth={model.depth}, num_classes={classes}, widen_factor={model.factor}, sub_block1=False",
            layers={"stem": "conv1", "bn": "bn1", "head": "fc", **_normalisation("mu", "sigma")},
            block="block{stage}.layer.{number}",
            inside={"shortcut": "convShortcut"},
            depths=depths,
        )
    activation = "Swish" if isinstance(model.act, nn.SiLU) else "nn.ReLU"
    return Counterpart(
        title=title,
        module=f"{_PLACE}.dm_wide_resnet",
        names=("DMWideResNet", *(["Swish"] if activation == "Swish" else [])),
        arguments=f"num_classes={classes}, depth={model.depth}, width={model.factor}, activation_fn={activation}",
        layers={"stem": "init_conv", "bn": "batchnorm", "head": "logits", **_normalisation("mean", "std")},
        block="layer.{stage0}.block.{number}",
        inside={"bn1": "batchnorm_0", "conv1": "conv_0", "bn2": "batchnorm_1", "conv2": "conv_1"},
        depths=depths,
    )


def _normalisation(mean: str, std: str) -> dict[str, str]:
    return dict(zip(NORMALISATION, (mean, std), strict=True))


def _layers(depths: Sequence[int], bottleneck: bool) -> int:
    return (3 if bottleneck else 2) * sum(depths) + 2


def _require(model: PreActResNet | ResNet | WideResNet, kind: type[nn.Module], option: str) -> None:
    found = model.blocks[0].act
    if not isinstance(found, kind):
        raise UserError(f"RobustBench has this network with {option} only, but it has {type(found).__name__}.")
