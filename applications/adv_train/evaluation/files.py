"""Records on disk: every evaluation of a run has a file of its own, and ``eval.json`` lists them for people.

``evaluations/NAME.npz`` is one complete evaluation: its arrays, and in ``record`` the rest as JSON. ``eval.json`` and
``outcomes.npz`` show the headline record. They are written for people and never read back, except in runs that were
evaluated when a run had a single record (see `first_format`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from adv_train.errors import UserError
from adv_train.evaluation.first_format import EVAL_FILE, OUTCOMES_FILE, read_first_format
from adv_train.evaluation.packed import FORMAT, pack, read_file
from adv_train.evaluation.record import Evaluation
from adv_train.files import make_folder, replace_file
from adv_train.threat import Threat

RECORDS_FOLDER: Final = "evaluations"


def write(evaluation: Evaluation, run_folder: Path, *, threat: Threat | None = None) -> Path:
    """Write a record beside the earlier ones, then ``outcomes.npz`` and ``eval.json``, each file in one piece.

    A record replaces an earlier one only if it is an evaluation of the same weights with the same settings. Earlier
    records of other weights in the same checkpoint file are kept, but are not the headline.

    Args:
        evaluation: The record.
        run_folder: An existing folder.
        threat: The threat of training; its records take precedence in the headline.

    Returns:
        The file of the record.

    Raises:
        UserError: If a file cannot be written, or an earlier record cannot be read.
    """
    earlier = read_first_format(run_folder, listed=bool(_files(run_folder)))
    folder = run_folder / RECORDS_FOLDER
    if not run_folder.is_dir():
        raise UserError(f"Cannot write an evaluation into `{run_folder}`: there is no such folder.")
    make_folder(folder)
    if earlier is not None:
        replace_file(folder / record_name(earlier), pack(earlier))
    path = folder / record_name(evaluation)
    replace_file(path, pack(evaluation))
    files = _files(run_folder)
    records = [read_file(file) for file in files]
    best = headline([record for record in records if not _replaced(record, evaluation)], threat)
    names = [f"{RECORDS_FOLDER}/{file.name}" for file in files]
    listed = [{"file": name, **_brief(record)} for name, record in zip(names, records, strict=True)]
    replace_file(run_folder / OUTCOMES_FILE, files[records.index(best)].read_bytes())
    # Written last, so that a folder with eval.json is complete.
    content = {"format": FORMAT, "file": names[records.index(best)], **best.summary(), "records": listed}
    replace_file(run_folder / EVAL_FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def read_all(run_folder: Path) -> list[Evaluation]:
    """Read every record of a run.

    Raises:
        UserError: If the folder has no record, or a record is damaged or has an unknown format.
    """
    records = records_of(run_folder)
    if not records:
        raise UserError(f"`{run_folder}` has not been evaluated: run `adv-train eval {run_folder}`.")
    return records


def records_of(run_folder: Path) -> list[Evaluation]:
    """Read every record of a folder; the list is empty if nothing was evaluated there.

    Raises:
        UserError: If a record is damaged or has an unknown format.
    """
    earlier = read_first_format(run_folder, listed=bool(_files(run_folder)))
    return [read_file(file) for file in _files(run_folder)] + ([] if earlier is None else [earlier])


def read(run_folder: Path, *, threat: Threat | None = None) -> Evaluation:
    """Read the record that represents a run; see `headline`.

    Raises:
        UserError: As `read_all` does.
    """
    return headline(read_all(run_folder), threat)


def headline(records: Sequence[Evaluation], threat: Threat | None = None) -> Evaluation:
    """Choose the record that represents a run: of the records of the best checkpoint, the most complete one.

    Records of ``best.pt`` come first, and those of its latest epoch before others; then records with the norm and
    budget of training; then those with AutoAttack, with PGD, with more samples, with more steps of PGD, and those in
    which PGD leaves the fewest samples.
    """

    def rank(record: Evaluation) -> tuple[Any, ...]:
        pgd = record.attacks["pgd"].settings if "pgd" in record.attacks else {}
        return (
            record.about.get("checkpoint") == "best.pt",
            record.about.get("epoch", 0),
            threat is None or record.threat.matches(threat),
            "autoattack" in record.attacks,
            "pgd" in record.attacks,
            record.n,
            pgd.get("steps", 0) * pgd.get("restarts", 0),
            -(record.ra_pgd or 0.0),
        )

    return max(records, key=rank)


def _replaced(record: Evaluation, later: Evaluation) -> bool:
    """Return whether the checkpoint of a record has other weights in a later record."""
    ours, theirs = (each.about.get("weights") for each in (record, later))
    return (
        record.about.get("checkpoint") == later.about.get("checkpoint")
        and ours != theirs
        and None not in (ours, theirs)
    )


def _brief(record: Evaluation) -> dict[str, Any]:
    """Return the entry of a record in the list of ``eval.json``."""
    wanted = ["checkpoint", "epoch", "norm", "eps", "n", "of", "seed", "sa", "ra", "intervals", "rounded", "attacks"]
    wanted += ["warnings"]
    summary = record.summary()
    return {key: summary[key] for key in wanted if key in summary}


def _files(run_folder: Path) -> list[Path]:
    return sorted((run_folder / RECORDS_FOLDER).glob("*.npz"))


def record_name(record: Evaluation) -> str:
    """Return the file name of a record: the main settings, and a digest of all settings and of the clean results."""
    about, attacks = record.about, "+".join(record.attacks) or "clean"
    stem = Path(str(about.get("checkpoint", "model"))).stem
    epoch = f"-epoch{about['epoch']}" if "epoch" in about else ""
    chosen = {"attacks": _settings(record), "seed": record.seed, "threat": vars(record.threat), "about": dict(about)}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode())
    for array in (record.clean, record.labels, record.predicted):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    what = f"{record.threat.norm}-{record.eps:.4g}-n{record.n}-{attacks}-seed{record.seed}"
    return f"{stem}{epoch}-{what}-{digest.hexdigest()[:8]}.npz"


def _settings(record: Evaluation) -> dict[str, Any]:
    return {name: dict(outcome.settings) for name, outcome in record.attacks.items()}
