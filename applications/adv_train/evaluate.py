"""Judging a model: accuracy on clean images (SA) and under attacks (RA), for any model and any images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from adv_train.attacks import ATTACKS, PGD, Attack, PGDSettings, StandardAutoAttack, Verdicts
from adv_train.attacks.judging import (
    adapted,
    check_labels,
    check_samples,
    checked,
    frozen,
    full_resolution,
    predict,
    suitable_threads,
)
from adv_train.data.dataset import Dataset
from adv_train.data.split import Split
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, Examples, Outcome, collapse, read, read_all, write
from adv_train.threat import Norm, Threat

__all__ = [
    "Evaluation",
    "Examples",
    "Images",
    "Outcome",
    "PGDSettings",
    "evaluate",
    "evaluate_model",
    "read",
    "read_all",
    "write",
]

_Samples: TypeAlias = tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]
Images: TypeAlias = Tensor | Dataset | Split | Iterable[tuple[Tensor, Tensor]]


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    threat: Threat | None = None,
    *,
    eps: float | None = None,
    norm: Norm = "linf",
    attacks: Sequence[Attack | str] = ("pgd", "autoattack"),
    class_names: Sequence[str] = (),
    files: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 512,
    examples: int = 6,
    progress: bool | None = False,
) -> Evaluation:
    """Judge any model in eval mode, and hand it back as it was.

    On one device and thread count the outcome depends on the arguments alone; the noise of PGD is drawn on the
    CPU, so it is the same on every device. A model in half precision is attacked by images at full resolution.

    Args:
        model: Maps images to logits ``(batch, classes)``, classes >= 2, with its normalisation inside.
        images: Images ``(n, C, H, W)``, n >= 1: uint8, or floating point in the threat's range, on the model's device.
            Or, without labels: a data set of `adv_train.data.load` (its test split is judged) or one of its splits, or
            batches of images and labels, such as a `torch.utils.data.DataLoader`; these are moved to the model.
        labels: Shape ``(n,)``, int64, on the device of the images.
        threat: What the attacks may do: ``Threat("linf", 8 / 255)``.
        eps: Instead of a threat, its budget for images in [0, 1].
        norm: With ``eps``, the norm.
        attacks: Names of `adv_train.attacks.ATTACKS`, or attacks with options such as ``PGD(steps=20)``; at most one
            of a kind. An empty sequence measures clean accuracy alone.
        class_names: In the order of the labels; by default those of the data set.
        files: File of each sample, for the record.
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        examples: How many attacked samples to keep for looking at.
        progress: Show bars; ``None`` shows them on a terminal only.

    Returns:
        Per-sample outcomes and what follows from them: ``.sa``, ``.ra_pgd``, ``.ra_aa``, ``.attacks["pgd"].robust``,
        ``.per_class()``, ``.warnings``.

    Warns:
        RuntimeWarning: When the predictions collapse on few classes, or an attack finds that its verdict overstates
            robustness. The record keeps these warnings.

    Raises:
        UserError: When an argument is out of range or shape.
        RuntimeError: When an attack leaves its budget.
    """
    if (threat is None) == (eps is None):
        raise UserError("Say what the attacks may do, by `threat` or by `eps`: `eps=8 / 255`, for one.")
    if threat is None:
        threat = Threat(norm, eps or 0.0)
    chosen = _named(attacks)
    x, y, known, paths = _samples(model, images, labels)
    files = tuple(files) or paths
    check_samples(x, y, threat)
    if files and len(files) != len(x):
        raise UserError(f"`files` must name the file of each of the {len(x)} images, but names {len(files)}.")
    if class_names and len(class_names) <= int(y.max()):
        raise UserError(f"`class_names` holds {len(class_names)} names, but the largest label is {int(y.max())}.")
    with frozen(model), suitable_threads(model, x):
        forward = adapted(model, x)
        with torch.no_grad():
            check_labels(y, checked(forward(full_resolution(x[:1])), 1).shape[1])
        before = predict(forward, full_resolution(x), batch_size)
    answers, truth = before.cpu().numpy(), y.cpu().numpy()
    if collapsed := collapse(truth, answers):
        warnings.warn(collapsed, RuntimeWarning, stacklevel=2)
    outcomes: dict[str, Outcome] = {}
    kept = None
    for name, attack in chosen.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            verdicts = attack(model, x, y, threat, seed=seed, batch_size=batch_size, progress=progress)
        for warning in caught:
            warnings.warn(warning.message, warning.category, stacklevel=2)
        said = dict.fromkeys(str(found.message) for found in caught if found.category is RuntimeWarning)
        robust, predicted = verdicts.robust.cpu().numpy(), verdicts.predicted.cpu().numpy()
        outcomes[name] = Outcome(robust, predicted, dict(verdicts.settings), tuple(said))
        if kept is None and examples > 0:
            kept = _examples(x, verdicts, y, before, examples)
    return Evaluation(
        threat=threat,
        seed=seed,
        clean=answers == truth,
        attacks=outcomes,
        labels=truth,
        predicted=answers,
        examples=kept,
        class_names=tuple(class_names) or known,
        files=files,
    )


def evaluate_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    pgd: PGD | None = PGD(),  # noqa: B008  # Frozen, so sharing the default is safe.
    autoattack: bool = True,
    **others: Any,
) -> Evaluation:
    """Judge a model on images in [0, 1] by PGD and AutoAttack in the maximum norm: `evaluate`, in fewer words.

    Args:
        model: As for `evaluate`, and so are the next two.
        images: In [0, 1], or uint8.
        labels: One an image.
        eps: Radius of the attacks.
        pgd: How hard PGD tries; ``None`` leaves it out.
        autoattack: Run standard AutoAttack, the costly part.
        **others: Further arguments of `evaluate`.
    """
    chosen = [*([] if pgd is None else [pgd]), *([StandardAutoAttack()] if autoattack else [])]
    return evaluate(model, images, labels, Threat("linf", eps), attacks=chosen, **others)


def _named(attacks: Sequence[Attack | str]) -> dict[str, Attack]:
    """Map names to attacks. An attack given by its name has default options."""
    if isinstance(attacks, str):
        attacks = [attacks]
    built = [ATTACKS.create(attack) if isinstance(attack, str) else attack for attack in attacks]
    named: dict[str, Attack] = {}
    for attack in built:
        name = ATTACKS.name_of(attack)
        if name in named:
            raise UserError(f"An evaluation holds one attack of a kind, but `{name}` is given twice: evaluate twice.")
        named[name] = attack
    return named


def _samples(model: nn.Module, images: Images, labels: Tensor | None) -> _Samples:
    """Give images in floating point, their labels, and the names of classes and files where they are known."""
    names: tuple[str, ...] = ()
    if isinstance(images, Tensor):
        if labels is None:
            raise UserError("`labels` are missing: a tensor of images needs one label each.")
        return _unit(images), labels, (), ()
    if labels is not None:
        raise UserError("`labels` are given, but the images bring their own: leave `labels` out.")
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    if isinstance(images, Dataset):
        names, images = images.class_names, images.test
    if isinstance(images, Split):
        return _unit(images.images.to(device)), images.labels.to(device), names, _files(images)
    batches = [(_unit(x), y) for x, y in images]
    if not batches:
        raise UserError("There is no image to judge: the batches are empty.")
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    return x.to(device), y.to(device), (), ()


def _files(split: Split) -> tuple[str, ...]:
    """Give the file of each image, where the split knows it."""
    return tuple(getattr(split, "names", None) or ())


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _examples(x: Tensor, verdicts: Verdicts, labels: Tensor, before: Tensor, k: int) -> Examples:
    """Keep the first k correctly classified samples: chosen blind to whether the attack broke them."""
    # A stable sort brings the correct ones to the front in their order, and fills up with others if they are few.
    chosen = (before != labels).int().argsort(stable=True)[:k]
    return Examples(
        clean=x[chosen].float().cpu().numpy(),
        adversarial=verdicts.images[chosen].float().cpu().numpy(),
        label=labels[chosen].cpu().numpy(),
        before=before[chosen].cpu().numpy(),
        after=verdicts.predicted[chosen].cpu().numpy(),
    )


class _CallableModule(ModuleType):
    """Lets `adv_train.evaluate` be the function whether or not this module was imported under the same name."""

    def __call__(self, *arguments: Any, **named: Any) -> Evaluation:
        return evaluate(*arguments, **named)


sys.modules[__name__].__class__ = _CallableModule
