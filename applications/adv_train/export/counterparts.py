"""Networks of RobustBench that compute the same function as ours, and their names for the same weights."""

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
    """A network of RobustBench.

    Attributes:
        title: Name of the architecture on the leaderboard.
        module: Module of its class.
        names: Names to import from the module, the class first.
        arguments: Arguments of the class, as code.
        layers: RobustBench's names of the layers outside the blocks, by our names.
        block: Format of the name of a block; `{stage}` counts from 1, `{stage0}` and `{number}` from 0.
        inside: RobustBench's names of layers inside a block, by our names; a layer that is not listed has our name.
        depths: Number of blocks in each stage.
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
        """Translate our name of an entry of the state dict into RobustBench's."""
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
    """Find the network of RobustBench that computes the same function.

    Args:
        model: One of our models.
        classes: Number of logits.

    Raises:
        UserError: If RobustBench has no such network.
    """
    raise UserError(
        f"RobustBench has no counterpart of {type(model).__name__}: the form robustbench needs preact-resnet, resnet "
        "or wrn models."
    )


@counterpart.register
def _(model: PreActResNet, classes: int) -> Counterpart:
    activated = {block.activated_shortcut for block in model.blocks if isinstance(block.shortcut, nn.Conv2d)}
    bottleneck = type(model).block is PreActBottleneck
    _require(model, nn.ReLU, "activation=relu")
    if model.stem.out_channels != 64:
        raise UserError(f"RobustBench has pre-activation ResNets of base_width 64 only, not {model.stem.out_channels}.")
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
        raise UserError(f"RobustBench has this network with {option} only, but this one has {type(found).__name__}.")
