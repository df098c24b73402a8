"""The images that a model is evaluated on, and the description of model and images for the record."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from adv_train.attacks.judging import adapted, frozen, predict
from adv_train.data.dataset import Dataset
from adv_train.data.split import to_unit_range
from adv_train.data.stratified import stratified_head
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.models import is_foreign

_ASKED = 256


def cut(dataset: Dataset, limit: int | None, device: torch.device) -> Dataset:
    """Return the data set with its test split on the device, cut to `limit` images; each class keeps its proportion."""
    test = dataset.test
    if limit is not None and limit < len(test):
        test = test.subset(stratified_head(test.labels, limit))
    return replace(dataset, test=test.to(device))


def check_fits(dataset: Dataset, arguments: dict[str, Any], given: str) -> None:
    """Check that a data set has the classes, channels and image size that a model was trained on.

    Args:
        dataset: The data set.
        arguments: Number of classes, of channels, and side of the images, of the model.
        given: Name of the data set, for the error.

    Raises:
        UserError: If one of them differs.
    """
    found = dataset.model_arguments()
    for key in ("classes", "channels", "image_size"):
        if found[key] != arguments[key]:
            what = key.replace("_", " ")
            raise UserError(f"The model was trained on {arguments[key]} {what}, but `{given}` has {found[key]}.")


def origin(model: nn.Module, name: str, dataset: Dataset, device: torch.device) -> dict[str, str]:
    """Return the description for the record: the data, digests of weights and images, the device and the versions.

    The code of a user's own network may change while its weights do not, so its answers have a digest too.
    """
    images = [dataset.test.images, dataset.test.labels]
    return {
        **({"answers": _answers(model, dataset)} if is_foreign(name) else {}),
        "data": dataset.name,
        "split": "test",
        "weights": digest(model.state_dict())[:16],
        "images": digest(images)[:16],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "blo": own_version(),
    }


def _answers(model: nn.Module, dataset: Dataset) -> str:
    """Return a digest of the predicted classes of the first test images."""
    x = to_unit_range(dataset.test.images[:_ASKED])
    with frozen(model), torch.no_grad():
        return digest(predict(adapted(model, x), x, _ASKED))[:16]


def own_version() -> str:
    """Return the version of this distribution."""
    try:
        return version("torch-blo")
    except PackageNotFoundError:  # the code runs from a source tree that is not installed
        return "not installed"
