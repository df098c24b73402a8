"""Records on disk: every evaluation of a run has a file of its own, and ``eval.json`` lists them for people.

``evaluations/NAME.npz`` is one evaluation, whole: the arrays, and in ``record`` the rest as JSON. ``eval.json`` and
``outcomes.npz`` show the headline record; nothing is read back from them, but for runs that were judged before records
stood side by side.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adv_train.errors import UserError
from adv_train.evaluation.record import Evaluation, Examples, Outcome
from adv_train.files import make_folder, replace_file
from adv_train.threat import Threat

EVAL_FILE: Final = "eval.json"
OUTCOMES_FILE: Final = "outcomes.npz"
RECORDS_FOLDER: Final = "evaluations"
FORMAT: Final = 2

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, UserError, zipfile.BadZipFile)
Arrays = dict[str, npt.NDArray[Any]]


def write(evaluation: Evaluation, run_folder: Path, *, threat: Threat | None = None) -> Path:
    """Write a record beside those that are there, and then ``outcomes.npz`` and ``eval.json``, each in one piece.

    A record takes the place of another only when it judges the same weights in the same way.

    Args:
        evaluation: What to write.
        run_folder: An existing folder.
        threat: What the run was trained for; records of it come first.

    Returns:
        The file of the record.

    Raises:
        UserError: When a file cannot be written, or an earlier record cannot be read.
    """
    earlier = _first_format(run_folder)
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
    best = headline(records, threat)
    names = [f"{RECORDS_FOLDER}/{file.name}" for file in files]
    listed = [{"file": name, **_brief(record)} for name, record in zip(names, records, strict=True)]
    replace_file(run_folder / OUTCOMES_FILE, files[records.index(best)].read_bytes())
    # Last, so that a folder with eval.json has everything.
    content = {"format": FORMAT, "file": names[records.index(best)], **best.summary(), "records": listed}
    replace_file(run_folder / EVAL_FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def read_all(run_folder: Path) -> list[Evaluation]:
    """Read every record of a run.

    Raises:
        UserError: When the folder has no record, or a record is damaged or has an unknown format.
    """
    records = records_of(run_folder)
    if not records:
        raise UserError(f"`{run_folder}` has not been evaluated: `adv-train eval {run_folder}` does it.")
    return records


def records_of(run_folder: Path) -> list[Evaluation]:
    """Read every record of a folder; none where nothing was judged.

    Raises:
        UserError: When a record is damaged or has an unknown format.
    """
    earlier = _first_format(run_folder)
    return [read_file(file) for file in _files(run_folder)] + ([] if earlier is None else [earlier])


def read(run_folder: Path, *, threat: Threat | None = None) -> Evaluation:
    """Read the record that stands for a run: see `headline`.

    Raises:
        UserError: As `read_all` does.
    """
    return headline(read_all(run_folder), threat)


def headline(records: Sequence[Evaluation], threat: Threat | None = None) -> Evaluation:
    """Choose the record that stands for a run: of the best checkpoint, and of these the fullest.

    First comes ``best.pt``, in its latest epoch; then norm and budget of training; then records with AutoAttack, with
    PGD, with more samples, and with more steps of PGD.
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
        )

    return max(records, key=rank)


def _brief(record: Evaluation) -> dict[str, Any]:
    """Give one line of the list in ``eval.json``."""
    wanted = ["checkpoint", "epoch", "norm", "eps", "n", "of", "seed", "sa", "ra", "intervals", "rounded", "attacks"]
    wanted += ["warnings"]
    summary = record.summary()
    return {key: summary[key] for key in wanted if key in summary}


def _files(run_folder: Path) -> list[Path]:
    return sorted((run_folder / RECORDS_FOLDER).glob("*.npz"))


def record_name(record: Evaluation) -> str:
    """Name a record's file by what people choose, and by a digest of all that decides it."""
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


def pack(record: Evaluation) -> bytes:
    """Give the content of a record's file."""
    arrays: Arrays = {"clean": record.clean}
    for name, outcome in record.attacks.items():
        arrays[name] = outcome.robust
        if outcome.predicted is not None:
            arrays[f"predicted_{name}"] = outcome.predicted
        if outcome.rounded is not None:
            arrays[f"rounded_{name}"] = outcome.rounded
    if record.labels is not None and record.predicted is not None:
        arrays |= {"labels": record.labels, "predicted": record.predicted}
    if record.files:
        arrays["files"] = np.array(record.files, dtype=np.str_)
    if record.examples is not None:
        arrays |= {f"example_{name}": array for name, array in vars(record.examples).items()}
    content = {
        "format": FORMAT,
        "threat": vars(record.threat),
        "seed": record.seed,
        "attacks": [
            {"name": name, "settings": dict(outcome.settings), "warnings": list(outcome.warnings)}
            for name, outcome in record.attacks.items()
        ],
        "class_names": list(record.class_names),
        "about": dict(record.about),
        **({} if record.of is None else {"of": record.of}),
    }
    arrays["record"] = np.array(json.dumps(content, allow_nan=False))
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    return archive.getvalue()


def _load(path: Path) -> Arrays:
    # From memory: a damaged archive would leave its file open.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_file(path: Path) -> Evaluation:
    """Read the record in a file.

    Raises:
        UserError: When it is damaged or has an unknown format.
    """
    try:
        arrays = _load(path)
        content = json.loads(str(arrays["record"]))
        version = content["format"]
    except _UNREADABLE as error:
        raise UserError(f"The evaluation `{path}` is damaged ({error}): delete it or judge again.") from error
    if version != FORMAT:
        raise UserError(f"`{path}` has format {version!r}, but this adv-train reads format {FORMAT}: update it.")
    try:
        record = _unpack(arrays, content)
    except _UNREADABLE as error:
        raise UserError(f"The evaluation `{path}` is damaged ({error}): delete it or judge again.") from error
    return record


def _unpack(arrays: Arrays, content: Mapping[str, Any]) -> Evaluation:
    attacks = {
        attack["name"]: Outcome(
            arrays[attack["name"]],
            arrays.get(f"predicted_{attack['name']}"),
            attack["settings"],
            tuple(attack["warnings"]),
            arrays.get(f"rounded_{attack['name']}"),
        )
        for attack in content["attacks"]
    }
    files = tuple(arrays["files"].tolist()) if "files" in arrays else ()
    if any(len(found) not in (0, len(arrays["clean"])) for found in (files, *(a.robust for a in attacks.values()))):
        raise ValueError("its arrays differ in length")
    return Evaluation(
        threat=Threat(**content["threat"]),
        seed=content["seed"],
        clean=arrays["clean"],
        attacks=attacks,
        labels=arrays.get("labels"),
        predicted=arrays.get("predicted"),
        examples=_examples(arrays),
        class_names=tuple(content["class_names"]),
        files=files,
        about=content["about"],
        of=content.get("of"),
    )


def _examples(arrays: Arrays) -> Examples | None:
    prefix = "example_"
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return Examples(**found) if found else None


def _first_format(run_folder: Path) -> Evaluation | None:
    """Read the record of a run that was judged when a run had one record, in ``eval.json`` and ``outcomes.npz``.

    Raises:
        UserError: When its files are damaged or do not belong together.
    """
    if not (run_folder / EVAL_FILE).is_file():
        return None
    try:
        try:
            summary = json.loads((run_folder / EVAL_FILE).read_text(encoding="utf-8"))
        except ValueError:
            if _files(run_folder):  # Only the list of these is damaged.
                return None
            raise
        if "format" in summary:
            return None
        arrays = _load(run_folder / OUTCOMES_FILE)
        attacks: dict[str, Outcome] = {
            name: Outcome(arrays[name], None, summary["attacks"][name])
            for name in ("pgd", "autoattack")
            if name in arrays
        }
        figures = ("sa", "ra_pgd", "ra_aa", "n", "eps", "seed", "attacks")
        record = Evaluation(
            threat=Threat("linf", summary["eps"]),
            seed=summary["seed"],
            clean=arrays["clean"],
            attacks=attacks,
            examples=_examples(arrays),
            about={key: value for key, value in summary.items() if key not in figures},
        )
        accuracies = [summary[name] for name in figures[:4]]
    except _UNREADABLE as error:
        raise UserError(
            f"The evaluation in `{run_folder}` is damaged ({error}): delete its {EVAL_FILE} and judge again."
        ) from error
    if accuracies != [record.sa, record.ra_pgd, record.ra_aa, record.n]:
        raise UserError(
            f"`{EVAL_FILE}` and `{OUTCOMES_FILE}` in `{run_folder}` do not belong together: "
            f"delete {EVAL_FILE} and judge again."
        )
    return record
