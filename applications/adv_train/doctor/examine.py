"""Running the checks, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train.attacks.checks import check_labels, checked
from adv_train.attacks.judging import Judging, full_resolution, progress_bar
from adv_train.attacks.room import BatchSize
from adv_train.data import Dataset, Split
from adv_train.data.stratified import stratified_head
from adv_train.doctor.base import CHECKS, Finding, NotCheckedError
from adv_train.doctor.diagnosis import Diagnosis
from adv_train.doctor.opening import patient_of_run
from adv_train.doctor.patient import Patient
from adv_train.errors import UserError, unknown
from adv_train.samples import Images, gathered
from adv_train.threat import Norm, Threat

LIMIT = 300


def doctor(
    model: nn.Module | Path | str,
    images: Images | None = None,
    labels: Tensor | None = None,
    threat: Threat | None = None,
    *,
    eps: float | None = None,
    norm: Norm | None = None,
    train: Split | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    limit: int | None = LIMIT,
    seed: int = 0,
    batch_size: BatchSize = 512,
    progress: bool | None = False,
) -> Diagnosis:
    """Look for the classic mistakes in evaluating robustness, in a model or a run.

    A module is examined in its present mode, because the wrong mode is one of the mistakes. Its state is the same
    afterwards.

    Args:
        model: Maps images to logits ``(batch, classes)``; or a run folder, of which the best checkpoint, the data and
            the records are examined.
        images: Images ``(n, C, H, W)``, uint8, or floating point, which should be in [0, 1]; or anything else that
            `adv_train.evaluate` accepts. A data set of `adv_train.data.load` also supplies the training images. None
            for a run.
        labels: Labels, shape ``(n,)``, int64.
        threat: The threat of the attacks.
        eps: Instead of `threat`, its budget as you used it: a check reports a budget that is out of range. For a run,
            by default that of training.
        norm: With ``eps``, the norm; by default that of training for a run, and linf for a module.
        train: The training images of the model, for the search for leaked test images.
        only: Names of the checks to run; by default all.
        skip: Names of the checks to leave out.
        limit: Largest number of images for the checks that call the model, drawn from all classes in proportion; None
            uses all images.
        seed: Seed of all random numbers.
        batch_size: Number of images in a forward pass; ``"auto"`` takes as many as memory holds.
        progress: Show a bar; ``None`` shows it on a terminal only.

    Returns:
        ``.findings`` by the name of the check, ``.healthy``, ``.illnesses``; printed, it is a table.

    Raises:
        UserError: If a check does not exist, the run cannot be read, or images, labels and model do not fit together.
    """
    names = chosen(only, skip)
    if isinstance(model, (str, Path)):
        if images is not None or labels is not None or train is not None:
            raise UserError("A run brings its own images: leave out `images`, `labels` and `train`, or pass a module.")
        if threat is not None:
            eps, norm = threat.eps, threat.norm
        patient = patient_of_run(Path(model), norm=norm, eps=eps, limit=limit, judging=Judging.of(seed, batch_size))
        return examine(patient, names, progress=progress)
    if images is None:
        raise UserError("`images` are missing: to examine a module, pass images and labels.")
    if (threat is None) == (eps is None):
        raise UserError("Set the budget of the attacks either by `threat` or by `eps`, for instance `eps=8 / 255`.")
    x, y, _, _ = gathered(model, images, labels, threat or Threat(norm or "linf", 0.0))
    dataset = images if isinstance(images, Dataset) else None
    if limit is not None and 0 < limit < len(x) == len(y):
        kept = stratified_head(y.cpu(), limit).to(y.device)
        whole, x, y = (x, y), x[kept], y[kept]
    else:
        whole = (x, y)
    patient = Patient(
        model=model,
        x=x,
        y=y,
        norm=threat.norm if threat else norm or "linf",
        eps=threat.eps if threat else eps or 0.0,
        train=train or (dataset.train if dataset else None),
        test=dataset.test if dataset else _as_split(images, whole, train),
        statistics=(dataset.mean, dataset.std) if dataset else None,
        judging=Judging.of(seed, batch_size),
    )
    return examine(patient, names, progress=progress)


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Return the names of the checks to run, in their order.

    Raises:
        UserError: If a check does not exist, or none is left.
    """
    for name in (*only, *skip):
        if name not in CHECKS.names():
            raise unknown("check", name, CHECKS.names())
    left = [name for name in CHECKS.names() if (not only or name in only) and name not in skip]
    if not left:
        raise UserError("No check is left: `only` must name a check that `skip` does not name.")
    return left


def examine(patient: Patient, names: Sequence[str], *, progress: bool | None = False) -> Diagnosis:
    """Run the checks of these names.

    Raises:
        UserError: If images, labels and model do not fit together.
    """
    _check(patient)
    findings: dict[str, Finding] = {}
    with progress_bar("doctor", len(names), "check", progress) as bar:
        for name in names:
            bar.set_postfix_str(name)
            findings[name] = _made(name, patient)
            bar.update()
    about: dict[str, Any] = {"norm": patient.norm, "eps": patient.eps, "n": len(patient.x)}
    about["seed"] = patient.judging.seed
    if patient.checkpoint:
        about["checkpoint"] = patient.checkpoint
    return Diagnosis(findings, about)


def _made(name: str, patient: Patient) -> Finding:
    """Run a check; if the model raises an error in it, the finding is "not checked" with that error."""
    try:
        return CHECKS.find(name)(patient)
    except NotCheckedError as reason:
        return Finding("not checked", str(reason))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        return Finding("not checked", f"it failed with {type(error).__name__}: {' '.join(str(error).split())}")


def _check(patient: Patient) -> None:
    """Check that images, labels and model fit together."""
    x, y = patient.x, patient.y
    if x.ndim != 4 or not x.is_floating_point() or len(x) == 0 or not bool(x.isfinite().all()):
        raise UserError(
            f"The doctor needs finite images of shape (N, C, H, W), N >= 1, but got {x.dtype} of {tuple(x.shape)}."
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or bool((y < 0).any()):
        raise UserError(f"The doctor needs one int64 label >= 0 an image, but got {y.dtype} of {tuple(y.shape)}.")
    with patient.forward() as forward, torch.no_grad():
        few = full_resolution(x[:2])  # Two, because a BatchNorm that uses batch statistics fails on a single image.
        check_labels(y, checked(forward(few), len(few)).shape[1])


def _as_split(images: Images, whole: tuple[Tensor, Tensor], train: Split | None) -> Split | None:
    """Return the test images in the dtype of the training images, to compare them."""
    if isinstance(images, Split) or train is None:
        return images if isinstance(images, Split) else None
    x = whole[0].cpu()
    if train.images.dtype == torch.uint8 and bool(((x >= 0) & (x <= 1)).all()):
        x = (255 * x).round().to(torch.uint8)
    return Split(x, whole[1].cpu())
