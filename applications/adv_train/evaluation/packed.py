"""One record as the content of a file: its arrays, and in ``record`` the rest as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from adv_train.archives import Arrays, load_arrays
from adv_train.errors import UserError
from adv_train.evaluation.record import Classes, Evaluation, Examples, Flags, Outcome
from adv_train.threat import Threat

FORMAT: Final = 2
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, UserError)


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
        raise UserError(f"The evaluation `{path}` is damaged ({error}): delete it or evaluate again.") from error
    if version != FORMAT:
        raise UserError(f"`{path}` has format {version!r}, but this adv-train reads format {FORMAT}: update it.")
    try:
        record = _unpack(arrays, content)
    except UNREADABLE as error:
        raise UserError(f"The evaluation `{path}` is damaged ({error}): delete it or evaluate again.") from error
    return record


def _unpack(arrays: Arrays, content: Mapping[str, Any]) -> Evaluation:
    clean = flags(arrays, "clean")
    n, about = len(clean), content["about"]
    if not isinstance(about, Mapping) or not isinstance(about.get("epoch", 0), int):
        raise ValueError(f"its description is {about!r}")
    attacks = {
        str(attack["name"]): Outcome(
            flags(arrays, attack["name"], n),
            _classes(arrays, f"predicted_{attack['name']}", n),
            dict(attack["settings"]),
            tuple(map(str, attack["warnings"])),
            flags(arrays, rounded, n) if (rounded := f"rounded_{attack['name']}") in arrays else None,
        )
        for attack in content["attacks"]
    }
    files = tuple(map(str, arrays["files"].tolist())) if "files" in arrays else ()
    if len(files) not in (0, n):
        raise ValueError(f"it has {len(files)} files of {n} samples")
    return Evaluation(
        threat=Threat(**content["threat"]),
        seed=int(content["seed"]),
        clean=clean,
        attacks=attacks,
        labels=_classes(arrays, "labels", n),
        predicted=_classes(arrays, "predicted", n),
        examples=examples_in(arrays),
        class_names=tuple(map(str, content["class_names"])),
        files=files,
        about=about,
        of=None if content.get("of") is None else int(content["of"]),
    )


def flags(arrays: Arrays, name: str, n: int | None = None) -> Flags:
    """Return the flags of n samples, or of any positive number of them.

    Raises:
        KeyError: If there is no such array.
        ValueError: If the array is not such flags.
    """
    found = arrays[name]
    if found.dtype != np.bool_ or found.ndim != 1 or len(found) != (n or max(len(found), 1)):
        raise ValueError(f"its array {name} has {found.dtype} and shape {found.shape}")
    return found


def _classes(arrays: Arrays, name: str, n: int) -> Classes | None:
    found = arrays.get(name)
    if found is not None and (found.dtype.kind != "i" or found.shape != (n,)):
        raise ValueError(f"its array {name} has {found.dtype} and shape {found.shape}")
    return found


def examples_in(arrays: Arrays) -> Examples | None:
    """Return the examples that the arrays of a record hold, or None.

    Raises:
        TypeError: If one of their arrays is missing.
        ValueError: If their arrays do not belong together.
    """
    prefix = "example_"
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not found:
        return None
    examples = Examples(**found)
    k, shape = len(examples.label), examples.clean.shape
    classes = (examples.label, examples.before, examples.after)
    if len(shape) != 4 or k != shape[0] or examples.adversarial.shape != shape or {c.shape for c in classes} != {(k,)}:
        raise ValueError("the arrays of its examples differ in length")
    return examples
