"""The finished attacks of an evaluation that is not complete, on disk, so that it continues after an interruption.

``evaluations/unfinished/KEY/`` belongs to one model, set of images, threat and seed, and is deleted when its evaluation
is written. You may delete it at any time; its attacks are then run again.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adv_train.archives import load_arrays
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.evaluation.files import RECORDS_FOLDER
from adv_train.evaluation.packed import pack, read_file
from adv_train.evaluation.record import Evaluation, Examples, Outcome
from adv_train.files import make_folder, replace_file

UNFINISHED: Final = "unfinished"
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished attack.

    Attributes:
        outcome: Its outcome.
        examples: Some of its samples; None if they were not kept.
        images: Its images as bytes ``(n, C, H, W)``; None if they were not requested.
    """

    outcome: Outcome
    examples: Examples | None = None
    images: npt.NDArray[np.uint8] | None = None


def as_hard(outcome: Outcome, settings: Mapping[str, Any]) -> bool:
    """Return whether an earlier attack had all of these settings."""
    return settings.items() <= outcome.settings.items()


@dataclass(frozen=True)
class Unfinished:
    """The finished attacks of an evaluation, in its folder or in records of the same model and images.

    Attributes:
        run_folder: Folder that holds ``evaluations``.
        empty: The evaluation before its first attack; only `threat`, `seed` and `about` are used.
        records: Records of the run.
    """

    run_folder: Path
    empty: Evaluation
    records: Sequence[Evaluation] = ()

    def whole(self, settings: Settings, n: int) -> Evaluation | None:
        """Find a record of exactly these attacks, with these settings, on n samples."""
        for record in self._alike():
            same = list(record.attacks) == list(settings) and record.n == n
            if same and all(as_hard(outcome, settings[name]) for name, outcome in record.attacks.items()):
                return record
        return None

    def find(self, name: str, settings: Mapping[str, Any], *, images: bool) -> Finished | None:
        """Find a finished attack, with its images if `images` is True; None if there is none."""
        path = self._path(name, settings)
        if path.is_file():
            with suppress(UserError):  # A damaged file counts as missing.
                record = read_file(path)
                stored = _read_images(path.with_suffix(".images"))
                if stored is not None or not images:
                    return Finished(record.attacks[name], record.examples, stored if images else None)
        if images:
            return None
        for record in self._alike():
            if name in record.attacks and as_hard(record.attacks[name], settings):
                first = next(iter(record.attacks)) == name
                return Finished(record.attacks[name], record.examples if first else None)
        return None

    def keep(self, name: str, settings: Mapping[str, Any], judged: Evaluation, finished: Finished) -> None:
        """Store a finished attack; `judged` has the clean verdicts."""
        path = self._path(name, settings)
        make_folder(path.parent)
        if finished.images is not None:
            archive = io.BytesIO()
            np.savez_compressed(archive, images=finished.images)
            replace_file(path.with_suffix(".images"), archive.getvalue())
        part = replace(
            self.empty,
            clean=judged.clean,
            labels=judged.labels,
            predicted=judged.predicted,
            attacks={name: finished.outcome},
            examples=finished.examples,
        )
        replace_file(path, pack(part))
        shutil.rmtree(self.folder(name, settings), ignore_errors=True)

    def folder(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Return the folder in which an attack keeps its finished batches."""
        return self._path(name, settings).with_suffix("")

    def forget(self) -> None:
        """Delete the folder, and its parent if that is empty."""
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):
            self._own.parent.rmdir()

    @property
    def _own(self) -> Path:
        known = {"threat": vars(self.empty.threat), "seed": self.empty.seed, "about": dict(self.empty.about)}
        return self.run_folder / RECORDS_FOLDER / UNFINISHED / digest(known)[:16]

    def _path(self, name: str, settings: Mapping[str, Any]) -> Path:
        return self._own / f"{name}-{digest(settings)[:16]}.npz"

    def _alike(self) -> list[Evaluation]:
        ours = self.empty
        return [
            record
            for record in self.records
            if (record.threat, record.seed, dict(record.about)) == (ours.threat, ours.seed, dict(ours.about))
        ]


def _read_images(path: Path) -> npt.NDArray[np.uint8] | None:
    try:
        found: npt.NDArray[np.uint8] = load_arrays(path, ["images"])["images"]
    except (OSError, ValueError):
        return None
    return found
