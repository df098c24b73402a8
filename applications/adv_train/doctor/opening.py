"""Makes patients of runs and of files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from adv_train.attacks.judging import Judging
from adv_train.data.split import to_unit_range
from adv_train.devices import find_device
from adv_train.digests import digest
from adv_train.doctor.patient import Patient
from adv_train.doctor.remedy import evaluating
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, records_of
from adv_train.judged_data import cut
from adv_train.opened import Opened, open_run, open_weights
from adv_train.records import RunFolder
from adv_train.threat import Norm


def patient_of_run(
    path: Path,
    *,
    which: str = "best",
    norm: Norm | None = None,
    eps: float | None = None,
    limit: int | None,
    judging: Judging = Judging(),
    device: str | None = None,
    data_name: str | None = None,
    data_root: str | None = None,
) -> Patient:
    """Open a run with its data, records and history; the arguments are those of `adv_train.evaluate_run`.

    Raises:
        UserError: If the run or its data cannot be used.
    """
    opened = open_run(path, which, device=device, data_name=data_name, data_root=data_root)
    trained = opened.trained
    if norm not in (None, trained.norm if trained else None) and eps is None:
        raise UserError(f"The run was trained in another norm: give --eps NUMBER to examine it in {norm}.")
    return _patient(
        opened,
        norm=norm or (trained.norm if trained else "linf"),
        eps=trained.eps if eps is None and trained else eps or 0.0,
        limit=limit,
        judging=judging,
        device=device,
        trained=trained,
        records=_own_records(path, opened),
        history=RunFolder(path).metrics(),
        attacked=RunFolder(path).config().method.attacks,
        judge=evaluating(
            [path],
            {
                "--checkpoint": None if which == "best" else which,
                "--data": data_name,
                "--data-root": data_root,
            },
        ),
        checkpoint=opened.about["checkpoint"],
    )


def patient_of_weights(
    model_name: str,
    data_name: str,
    folder: Path,
    *,
    weights: Path | None,
    normalisation: Literal["data", "none"] | None,
    norm: Norm,
    eps: float,
    limit: int | None,
    judging: Judging = Judging(),
    device: str | None = None,
    data_root: str = "data",
) -> Patient:
    """Open a model that `adv-train` has not trained; the arguments are those of `adv_train.evaluate_weights`.

    Raises:
        UserError: If the model, its weights or the data cannot be used.
    """
    opened = open_weights(
        model_name, data_name, weights=weights, normalisation=normalisation, device=device, data_root=data_root
    )
    given: dict[str, object] = {
        "--checkpoint-file": weights,
        "--model": model_name,
        "--normalisation": normalisation,
        "--data": data_name,
    }
    where = {"--data-root": None if data_root == "data" else data_root, "--out": folder}
    return _patient(
        opened,
        norm=norm,
        eps=eps,
        limit=limit,
        judging=judging,
        device=device,
        records=_own_records(folder, opened),
        judge=evaluating([], given | where),
        checkpoint=opened.about["checkpoint"],
    )


def _own_records(folder: Path, opened: Opened) -> list[Evaluation]:
    """Read the records of these weights; records of the first format count, as they do not name their weights."""
    weights = digest(opened.model.state_dict())[:16]
    return [record for record in records_of(folder) if record.about.get("weights", weights) == weights]


def _patient(opened: Opened, *, limit: int | None, device: str | None, **known: Any) -> Patient:
    dataset = opened.dataset
    judged = cut(dataset, limit, find_device(device or "auto")).test
    return Patient(
        model=opened.model,
        x=to_unit_range(judged.images),
        y=judged.labels,
        train=dataset.train,
        test=dataset.test,
        statistics=(dataset.mean, dataset.std),
        **known,
    )
