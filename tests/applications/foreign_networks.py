"""The networks of RobustBench, restated: the names and shapes in their state dicts, and forward passes over those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
WIDTHS = (64, 128, 256, 512)


def conv(shapes: Shapes, name: str, out: int, into: int, side: int) -> None:
    shapes[f"{name}.weight"] = (out, into, side, side)


def norm(shapes: Shapes, name: str, width: int) -> None:
    shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    shapes[f"{name}.num_batches_tracked"] = ()


def linear(shapes: Shapes, name: str, width: int, classes: int) -> None:
    shapes |= {f"{name}.weight": (classes, width), f"{name}.bias": (classes,)}


@dataclass(frozen=True)
class Foreign:
    """A network there: what its state dict holds, and its logits in eval mode from images that are normalised."""

    shapes: Shapes
    logits: Callable[[State, Tensor], Tensor]

    def state(self, seed: int = 0) -> State:
        """Draw weights and statistics of which none is neutral, in float64."""
        generator = torch.Generator().manual_seed(seed)
        return {name: self._drawn(name, shape, generator) for name, shape in self.shapes.items()}

    def _drawn(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        if len(shape) < 2:
            return 0.5 + uniform
        fan_in = uniform[0].numel()
        return (uniform - 0.5) * (24 / fan_in) ** 0.5  # the variance of He's initialisation


def bn(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def pooled(state: State, name: str, x: Tensor) -> Tensor:
    return x.mean((2, 3)) @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def places(depths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(stage, index) for stage, depth in enumerate(depths) for index in range(depth)]


def resnet(depths: tuple[int, ...], *, bottleneck: bool = False, classes: int = 10) -> Foreign:
    """`ResNet`: BatchNorm after convolutions, shortcuts with BatchNorm."""
    shapes: Shapes = {}
    conv(shapes, "conv1", 64, 3, 3)
    norm(shapes, "bn1", 64)
    into, growth = 64, 4 if bottleneck else 1
    for stage, index in places(depths):
        name, width = f"layer{stage + 1}.{index}", WIDTHS[stage]
        sizes = [(1, into, width), (3, width, width), (1, width, 4 * width)]
        for part, (side, a, b) in enumerate(sizes if bottleneck else [(3, into, width), (3, width, width)], 1):
            conv(shapes, f"{name}.conv{part}", b, a, side)
            norm(shapes, f"{name}.bn{part}", b)
        if into != growth * width:
            conv(shapes, f"{name}.shortcut.0", growth * width, into, 1)
            norm(shapes, f"{name}.shortcut.1", growth * width)
        into = growth * width
    linear(shapes, "linear", into, classes)

    def logits(state: State, x: Tensor) -> Tensor:
        x = bn(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)).relu()
        for stage, index in places(depths):
            name, stride = f"layer{stage + 1}.{index}", 2 if stage and not index else 1
            y = x
            parts = (1, 2, 3) if bottleneck else (1, 2)
            for part in parts:
                weight = state[f"{name}.conv{part}.weight"]
                here = stride if part == (2 if bottleneck else 1) else 1
                y = F.conv2d(y, weight, stride=here, padding=weight.shape[-1] // 2)
                y = bn(state, f"{name}.bn{part}", y)
                y = y if part == parts[-1] else y.relu()
            if f"{name}.shortcut.0.weight" in state:
                x = bn(state, f"{name}.shortcut.1", F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride))
            x = (y + x).relu()
        return pooled(state, "linear", x)

    return Foreign(shapes, logits)


def preact_resnet(
    depths: tuple[int, ...], *, bottleneck: bool = False, activated: bool = False, last: bool = True, classes: int = 10
) -> Foreign:
    """`PreActResNet` of `PreActBlock`, `PreActBlockV2` (`activated`) or `PreActBottleneck`, `last`: `bn_before_fc`."""
    shapes: Shapes = {}
    conv(shapes, "conv1", 64, 3, 3)
    into, growth = 64, 4 if bottleneck else 1
    for stage, index in places(depths):
        name, width = f"layer{stage + 1}.{index}", WIDTHS[stage]
        sizes = [(1, into, width), (3, width, width), (1, width, 4 * width)]
        for part, (side, a, b) in enumerate(sizes if bottleneck else [(3, into, width), (3, width, width)], 1):
            norm(shapes, f"{name}.bn{part}", a)
            conv(shapes, f"{name}.conv{part}", b, a, side)
        if into != growth * width:
            conv(shapes, f"{name}.shortcut.0", growth * width, into, 1)
        into = growth * width
    if last:
        norm(shapes, "bn", into)
    linear(shapes, "linear", into, classes)

    def logits(state: State, x: Tensor) -> Tensor:
        x = F.conv2d(x, state["conv1.weight"], padding=1)
        for stage, index in places(depths):
            name, stride = f"layer{stage + 1}.{index}", 2 if stage and not index else 1
            first = y = bn(state, f"{name}.bn1", x).relu()
            for part in (1, 2, 3) if bottleneck else (1, 2):
                y = y if part == 1 else bn(state, f"{name}.bn{part}", y).relu()
                weight = state[f"{name}.conv{part}.weight"]
                here = stride if part == (2 if bottleneck else 1) else 1
                y = F.conv2d(y, weight, stride=here, padding=weight.shape[-1] // 2)
            if f"{name}.shortcut.0.weight" in state:
                x = F.conv2d(first if activated else x, state[f"{name}.shortcut.0.weight"], stride=stride)
            x = y + x
        return pooled(state, "linear", bn(state, "bn", x).relu() if last else x)

    return Foreign(shapes, logits)


def wide_resnet(depth: int, factor: int, *, spare: bool = False, classes: int = 10) -> Foreign:
    """`WideResNet`, with the copy of the first stage that it may hold and never applies (`sub_block1`)."""
    widths, blocks = (16, 16 * factor, 32 * factor, 64 * factor), (depth - 4) // 6
    shapes: Shapes = {}
    conv(shapes, "conv1", 16, 3, 3)
    for stage, (a, b) in enumerate(pairwise(widths), 1):
        for group in [f"block{stage}", *(["sub_block1"] if spare and stage == 1 else [])]:
            for index in range(blocks):
                name, into = f"{group}.layer.{index}", b if index else a
                norm(shapes, f"{name}.bn1", into)
                conv(shapes, f"{name}.conv1", b, into, 3)
                norm(shapes, f"{name}.bn2", b)
                conv(shapes, f"{name}.conv2", b, b, 3)
                if into != b:
                    conv(shapes, f"{name}.convShortcut", b, into, 1)
    norm(shapes, "bn1", widths[-1])
    linear(shapes, "fc", widths[-1], classes)

    def logits(state: State, x: Tensor) -> Tensor:
        x = F.conv2d(x, state["conv1.weight"], padding=1)
        for stage, index in places((blocks,) * 3):
            name, stride = f"block{stage + 1}.layer.{index}", 2 if stage and not index else 1
            first = bn(state, f"{name}.bn1", x).relu()
            y = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(bn(state, f"{name}.bn2", y).relu(), state[f"{name}.conv2.weight"], padding=1)
            if index == 0:
                x = F.conv2d(first, state[f"{name}.convShortcut.weight"], stride=stride)
            x = x + y
        return pooled(state, "fc", bn(state, "bn1", x).relu())

    return Foreign(shapes, logits)


def deepmind_wide_resnet(depth: int, factor: int, *, classes: int = 10) -> Foreign:
    """`DMWideResNet`: SiLU, and padding by one pixel at the right and at the bottom where the stride is 2."""
    widths, blocks = (16, 16 * factor, 32 * factor, 64 * factor), (depth - 4) // 6
    shapes: Shapes = {"mean": (3, 1, 1), "std": (3, 1, 1)}
    conv(shapes, "init_conv", 16, 3, 3)
    for stage, index in places((blocks,) * 3):
        name, b = f"layer.{stage}.block.{index}", widths[stage + 1]
        into = b if index else widths[stage]
        norm(shapes, f"{name}.batchnorm_0", into)
        conv(shapes, f"{name}.conv_0", b, into, 3)
        norm(shapes, f"{name}.batchnorm_1", b)
        conv(shapes, f"{name}.conv_1", b, b, 3)
        if into != b:
            conv(shapes, f"{name}.shortcut", b, into, 1)
    norm(shapes, "batchnorm", widths[-1])
    linear(shapes, "logits", widths[-1], classes)

    def logits(state: State, x: Tensor) -> Tensor:
        x = F.conv2d(x, state["init_conv.weight"], padding=1)
        for stage, index in places((blocks,) * 3):
            name, stride = f"layer.{stage}.block.{index}", 2 if stage and not index else 1
            first = F.silu(bn(state, f"{name}.batchnorm_0", x))
            padded = F.pad(first, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            y = F.conv2d(padded, state[f"{name}.conv_0.weight"], stride=stride)
            y = F.conv2d(F.silu(bn(state, f"{name}.batchnorm_1", y)), state[f"{name}.conv_1.weight"], padding=1)
            if index == 0:
                x = F.conv2d(first, state[f"{name}.shortcut.weight"], stride=stride)
            x = x + y
        return pooled(state, "logits", F.silu(bn(state, "batchnorm", x)))

    return Foreign(shapes, logits)
