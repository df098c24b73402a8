"""The samples of an evaluation, read from the forms that users pass, and the examples that a record keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from adv_train.attacks import Verdicts
from adv_train.data.dataset import Dataset
from adv_train.data.split import Split, to_unit_range
from adv_train.errors import UserError
from adv_train.evaluation import Examples
from adv_train.threat import Threat

Samples: TypeAlias = tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]
Images: TypeAlias = Tensor | Dataset | Split | Iterable[tuple[Tensor, Tensor]]


def gathered(model: nn.Module, images: Images, labels: Tensor | None, threat: Threat) -> Samples:
    """Return images in floating point, their labels, and the names of classes and of files, if these are known.

    The bytes of uint8 images span the range of the threat, and so do the images of a data set.

    Raises:
        UserError: If labels are missing or given twice, or there is no image.
    """
    names: tuple[str, ...] = ()
    if isinstance(images, Tensor):
        if labels is None:
            raise UserError("`labels` are missing: a tensor of images needs one label for each image.")
        return _floating(images, threat), labels, (), ()
    if labels is not None:
        raise UserError("`labels` are given, but `images` has labels of its own: leave `labels` out.")
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    if isinstance(images, Dataset):
        names, images = images.class_names, images.test
    if isinstance(images, Split):
        return _in_range(images.images.to(device), threat), images.labels.to(device), names, _files(images)
    batches = [(_floating(x, threat), y) for x, y in images]
    if not batches:
        raise UserError("There is no image to evaluate on: the batches are empty.")
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    return x.to(device), y.to(device), (), ()


def _files(split: Split) -> tuple[str, ...]:
    """Return the file of each image; empty if the split does not know it."""
    return tuple(getattr(split, "names", None) or ())


def _floating(images: Tensor, threat: Threat) -> Tensor:
    return _in_range(images, threat) if images.dtype == torch.uint8 else images


def _in_range(images: Tensor, threat: Threat) -> Tensor:
    """Return the images of a data set, which are bytes or in [0, 1], in the range of the threat."""
    return threat.low + to_unit_range(images) * (threat.high - threat.low)


def shown_examples(x: Tensor, verdicts: Verdicts, labels: Tensor, before: Tensor, k: int) -> Examples:
    """Return the first k correctly classified samples as examples, whether or not the attack broke them."""
    # The stable sort puts the correctly classified samples first, in their order; if there are fewer than k, others
    # follow.
    chosen = (before != labels).int().argsort(stable=True)[:k]
    return Examples(
        clean=x[chosen].float().cpu().numpy(),
        adversarial=verdicts.images[chosen].float().cpu().numpy(),
        label=labels[chosen].cpu().numpy(),
        before=before[chosen].cpu().numpy(),
        after=verdicts.predicted[chosen].cpu().numpy(),
    )
