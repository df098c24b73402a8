"""Files of JSON lines: one object in each line, as records of epochs and steps are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adv_train.errors import UserError


def read_lines(path: Path, needed: Mapping[str, type], *, whole: bool = True) -> list[dict[str, Any]]:
    """Read an object from each line of JSON; a file that does not exist has no lines.

    Args:
        path: The file.
        needed: The keys that each object must have, with the type of their number.
        whole: Whether the last line must be complete; otherwise one without an end is left out.

    Raises:
        UserError: If the file or a line is damaged; the message names the line.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError(f"`{path}` is damaged: it is not text.") from error
    except OSError as error:
        raise UserError(f"Cannot read `{path}`: {error.strerror}.") from error
    lines = (text if whole else text[: text.rfind("\n") + 1]).splitlines()
    return [_read_line(line, f"Line {number} of `{path}`", needed) for number, line in enumerate(lines, start=1)]


def to_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of a file with one line of JSON for each record."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def _read_line(line: str, where: str, needed: Mapping[str, type]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {line[:60]!r}.") from error
    known = found if isinstance(found, dict) else {}
    for key, kind in needed.items():
        value = known.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UserError(f"{where} is not a record of an epoch: its `{key}` is not a number: {line[:60]!r}.")
    return found
