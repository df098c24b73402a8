"""The run folder: its configuration, the records of its epochs, and the lock that excludes a second process."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adv_train.config import RunConfig, read_yaml, to_yaml
from adv_train.data import Dataset
from adv_train.errors import UserError
from adv_train.evaluation import stayed
from adv_train.files import make_folder, replace_file
from adv_train.json_lines import read_lines, to_lines


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder and the content of its text files.

    Attributes:
        path: The folder, which need not exist yet.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The configuration as YAML."""
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """Checkpoint after the last finished epoch, from which the run resumes."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch on the validation split."""
        return self.path / "best.pt"

    @property
    def sound(self) -> Path:
        """Checkpoint of the last epoch that did not overfit; it exists only in runs with `rollback`."""
        return self.path / "sound.pt"

    @property
    def metrics_file(self) -> Path:
        """Metrics, one JSON object for each epoch; they depend only on the configuration."""
        return self.path / "metrics.jsonl"

    @property
    def timing_file(self) -> Path:
        """Wall-clock seconds, one JSON object for each epoch; kept apart because they differ between equal runs."""
        return self.path / "timing.jsonl"

    @property
    def split_file(self) -> Path:
        """The files of each split, as JSON; it exists only if the data set is an image folder."""
        return self.path / "split.json"

    def config(self) -> RunConfig:
        """Read the configuration.

        Raises:
            UserError: If the folder has no configuration, or it is malformed or incomplete.
        """
        if not self.config_file.is_file():
            raise UserError(f"`{self.path}` is not a run folder: it has no config.yaml. `adv-train fit` creates one.")
        try:
            return RunConfig.of(read_yaml(self.config_file))
        except UserError as error:
            raise UserError(f"In the configuration `{self.config_file}`: {error}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics of each finished epoch; before the first one ends, the list is empty.

        Raises:
            UserError: If the file is damaged.
        """
        return read_lines(self.metrics_file, {"epoch": int, "val_sa": float, "val_ra": float})

    def timing(self) -> list[dict[str, Any]]:
        """Read the seconds of each finished epoch; before the first one ends, the list is empty.

        Raises:
            UserError: If the file is damaged.
        """
        return read_lines(self.timing_file, {"epoch": int, "train_seconds": float})

    def split(self) -> dict[str, Any] | None:
        """Read the recorded splits of an image folder; None if there are none.

        Raises:
            UserError: If the record is damaged.
        """
        if not self.split_file.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(self.split_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"The record of the splits, `{self.split_file}`, is not valid JSON ({error}).") from error
        return found

    def check_split(self, dataset: Dataset) -> None:
        """Check that the splits of the run are still recorded, if its data set is an image folder.

        Raises:
            UserError: If the record is missing. New splits could put training images into the test split.
        """
        if dataset.record is not None and not self.split_file.exists():
            raise UserError(
                f"`{self.split_file}` is missing, and only this file says which images the run was trained on: "
                "put it back, or train into another folder."
            )

    def write_split(self, record: Mapping[str, Any]) -> None:
        """Record the splits of an image folder."""
        replace_file(self.split_file, (json.dumps(record, indent=0) + "\n").encode())

    def holds_metrics(self, history: Iterable[Mapping[str, Any]]) -> bool:
        """Return whether the metrics file holds exactly these records."""
        return self.metrics_file.is_file() and self.metrics_file.read_bytes() == to_lines(history)

    def write_metrics(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the metrics of all finished epochs; the file is replaced atomically."""
        replace_file(self.metrics_file, to_lines(history))

    def write_timing(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the seconds of all finished epochs; the file is replaced atomically."""
        replace_file(self.timing_file, to_lines(history))

    def check(self, config: RunConfig) -> None:
        """Check that a run with this configuration may use the folder; this changes nothing.

        Raises:
            UserError: If the folder holds another configuration, or results without a configuration.
        """
        if not self.config_file.exists():
            results = [file.name for file in (self.last, self.best, self.metrics_file) if file.exists()]
            if results:
                raise UserError(f"`{self.path}` holds {results[0]} but no config.yaml: give --out another folder.")
            return
        differences = config.differences(self.config())
        if differences:
            raise UserError(
                f"`{self.path}` holds a run with another configuration; it differs in {', '.join(differences)}. "
                "Give --out another folder."
            )

    def extended(self, config: RunConfig) -> RunConfig:
        """Return the configuration; if the folder holds a finished run with fewer epochs, set `extended_from`.

        A configuration with the stages of another run is returned as it is, and `check` then refuses it.
        """
        if not self.config_file.is_file():
            return config
        there = self.config().training
        finished, before = len(self.metrics()) >= there.epochs, there.extended_from
        for stages in (before, (*(before or ()), there.epochs) if finished else None):
            if stages is not None and config.training.extended_from in (None, before, stages):
                longer = config.changed({"extended_from": stages})
                if not longer.differences(self.config()):
                    return longer
        return config

    @contextmanager
    def claim(self, config: RunConfig) -> Iterator[None]:
        """Lock the folder for this process; create it and its ``config.yaml`` if they do not exist.

        Raises:
            UserError: If the folder cannot be used (see `check`) or written, or another process trains in it.
        """
        self.check(config)
        make_folder(self.path)
        with _locked(self.path / ".lock"):
            if not self.config_file.exists() or self.config().training != config.training:
                replace_file(self.config_file, to_yaml(config).encode())
            yield


def score(select: str, record: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the score of an epoch; the epoch with the largest tuple is the best.

    Args:
        select: ``"robust"``, ``"clean"`` or ``"last"``, as in `adv_train.config.TrainingConfig`.
        record: The metrics of the epoch.
    """
    scores: dict[str, tuple[float, ...]] = {
        "robust": (record["val_ra"], record["val_sa"]),
        "clean": (record["val_sa"], record["val_ra"]),
        "last": (record["epoch"],),
    }
    return scores[select]


def best_record(select: str, history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the record of the epoch in ``best.pt``: the first one with the largest score.

    An epoch that was rolled back is not chosen by its accuracies, because they are those of weights that the run
    discarded. If all epochs were rolled back, the choice is among all of them. ``"last"`` is the last epoch in any
    case, so that ``best.pt`` and ``last.pt`` hold the same weights.

    Args:
        select: As for `score`.
        history: The metrics of the epochs, at least one.
    """
    chosen = history if select == "last" else stayed(history) or history
    return max(chosen, key=lambda record: score(select, record))


def measured_record(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the record whose accuracies are those of the weights after an epoch.

    It is the record itself, or that of the epoch to which the run was rolled back.

    Args:
        record: The metrics of the epoch.
        history: The metrics of all epochs, in order.
    """
    return history[record["rolled_back_to"] - 1] if "rolled_back_to" in record else record


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system releases the lock when the process ends in any way, so a killed run leaves nothing to clean up.
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another process is training in `{path.parent}`: wait for it, or use another folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise UserError(f"Cannot write into the folder `{path.parent}`: {error.strerror}.") from error
        # Some network file systems have no locks; there, the user must not start two processes.
    try:
        yield
    finally:
        lock.release()
