"""Classification networks of torchvision, by torchvision's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adv_train.errors import UserError, unknown
from adv_train.models.layers import Normalise
from adv_train.precision import at_full_resolution

PREFIX: Final = "torchvision:"
#: Networks that in train mode also return the logits of auxiliary heads, unless they are built without these heads.
_AUXILIARY: Final = ("googlenet", "inception_v3")


class TorchvisionModel(nn.Module):
    """A network for colour images, with the normalisation before it; a grey image becomes three equal channels.

    Args:
        network: Maps normalised images to logits.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)`` of images ``(batch, channels, height, width)`` in [0, 1]."""
        logits: Tensor = self.network(self.normalise(images).expand(-1, 3, -1, -1))
        return logits


def parameters(name: str) -> int:
    """Return the number of parameters of a network with torchvision's 1,000 classes, as torchvision documents it.

    Raises:
        UserError: If torchvision has no such network.
    """
    from torchvision.models import get_model_weights

    return int(get_model_weights(_network(name)).DEFAULT.meta["num_params"])


def make(
    name: str,
    options: Mapping[str, Any],
    *,
    channels: int,
    classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Build a network with fresh weights, as torchvision draws them.

    Args:
        name: A name such as ``torchvision:resnet18``.
        options: Must be empty: these networks have no options.
        channels: Channels of the images, 1 or 3.
        classes: Number of logits.
        image_size: Side of the images in pixels.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Raises:
        UserError: If torchvision has no such network, the network does not support such images, or there are options.
    """
    from torchvision.models import get_model

    if options:
        raise UserError(f"`{name}` has no option `{next(iter(options))}`: networks of torchvision have no options.")
    if channels not in (1, 3):
        raise UserError(f"`{name}` takes images of 1 or 3 channels, but these have {channels}.")
    network = _network(name)
    chosen: dict[str, Any] = {"aux_logits": False, "init_weights": True} if network in _AUXILIARY else {}
    if network.startswith("vit_"):
        chosen["image_size"] = image_size
    try:
        model = TorchvisionModel(get_model(network, weights=None, num_classes=classes, **chosen), mean, std)
        _apply_to_shapes(model, torch.empty(1, channels, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:  # networks reject image sizes by different errors
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"`{name}` does not take images of {image_size}x{image_size} pixels ({reason}). Resize the images (`size`, "
            "such as size=224), or choose a network for small images, such as resnet-18."
        ) from error
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in (layers[0], layers[-1]):
        # Turn the layer into a subclass that differs only in the precision of `forward`.
        layer.__class__ = _FullConv2d if isinstance(layer, nn.Conv2d) else _FullLinear
    return model


def _network(name: str) -> str:
    import torchvision.models as zoo

    network, known = name.removeprefix(PREFIX), zoo.list_models(module=zoo)
    if network not in known:
        raise unknown("network of torchvision", network, known)
    return network


def _apply_to_shapes(model: nn.Module, images: Tensor) -> None:
    """Run a model on shapes alone, without arithmetic or random numbers."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    with torch.device("meta"):
        functional_call(model.eval(), shapes, (images,))
    model.train()


class _FullConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return at_full_resolution(super().forward, input)


class _FullLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return at_full_resolution(super().forward, input)
