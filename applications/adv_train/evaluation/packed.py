"""One record as the content of a file: its arrays, and in ``record`` the rest as JSON."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adv_train.errors import UserError
from adv_train.evaluation.record import Evaluation, Examples, Outcome
from adv_train.threat import Threat

FORMAT: Final = 2
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, UserError, zipfile.BadZipFile)
Arrays = dict[str, npt.NDArray[Any]]


def pack(record: Evaluation) -> bytes:
    """Return the content of a record's file."""
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


def read_file(path: Path) -> Evaluation:
    """Read the record in a file.

    Raises:
        UserError: If the file is damaged or has an unknown format.
    """
    try:
        arrays = load_arrays(path)
        content = json.loads(str(arrays["record"]))
        version = content["format"]
    except UNREADABLE as error:
        raise UserError(f"The evaluation `{path}` is damaged ({error}): delete it or judge again.") from error
    if version != FORMAT:
        raise UserError(f"`{path}` has format {version!r}, but this adv-train reads format {FORMAT}: update it.")
    try:
        record = _unpack(arrays, content)
    except UNREADABLE as error:
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
        examples=examples_in(arrays),
        class_names=tuple(content["class_names"]),
        files=files,
        about=content["about"],
        of=content.get("of"),
    )


def load_arrays(path: Path) -> Arrays:
    """Read all arrays of a file."""
    # Read from memory: NumPy would leave the file of a damaged archive open.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def examples_in(arrays: Arrays) -> Examples | None:
    """Return the examples that the arrays of a record hold, or None."""
    prefix = "example_"
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return Examples(**found) if found else None
