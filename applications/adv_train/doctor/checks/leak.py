"""Test images that the model was trained on."""

from __future__ import annotations

from typing import Any

from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, doubtful, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.twins import find_twins

_FEW, _MANY = 1e-3, 1e-2
"""Shares of leaked test images above which the verdict is doubtful, and from which it is ill. The published CIFAR-10
has five mirrored twins in 10,000, which change no figure noticeably."""

_NAMED = 5


@CHECKS.register("leak")
def leak(patient: Patient) -> Finding:
    """Are test images among the training images: the same, mirrored or nearly the same?"""
    train, test = patient.train, patient.test
    if train is None or test is None:
        raise NotCheckedError("the training images are not known")
    if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        raise NotCheckedError("training and test images have different shapes or types")
    found = find_twins(train, test)
    kinds = {kind: sum(twin.kind == kind for twin in found) for kind in ("the same", "mirrored", "nearly the same")}
    conflicts = sum(bool(test.labels[twin.test] != train.labels[twin.train]) for twin in found)
    share = len(found) / len(test)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    seen = f"{len(found)} of {len(test)} test images ({share:.2%}) are among {len(train)} training images"
    figures: dict[str, Any] = {"twins": len(found), "n": len(test), **kinds, "label_conflicts": conflicts}
    figures["pairs"] = [[twin.kind, twin.test, twin.train] for twin in found[:100]]
    if found:
        names = [f"{_named(test.names, 'test', t.test)} = {_named(train.names, 'train', t.train)}" for t in found]
        more = " ..." if len(names) > _NAMED else ""
        seen += f" ({told}), {conflicts} with another label: {', '.join(names[:_NAMED])}{more}"
    if share <= _FEW:
        return well(seen, **figures)
    remedy = "Remove them from the training images and train again, or from the test images and evaluate again."
    return (ill if share >= _MANY else doubtful)(seen, remedy, **figures)


def _named(names: tuple[str, ...] | None, split: str, index: int) -> str:
    return names[index] if names else f"{split}[{index}]"
