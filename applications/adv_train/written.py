"""Names with options as people write them: `pgd(steps=20, restarts=2)`, and lists of these."""

from __future__ import annotations

import re
from typing import Final

from adv_train import values

_DEPTH: Final = {"(": 1, "[": 1, ")": -1, "]": -1}


def items(text: str) -> list[str]:
    """Split a list at its commas, but for those inside brackets; empty items are left out."""
    found, depth = [""], 0
    for letter in text:
        depth += _DEPTH.get(letter, 0)
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [item.strip() for item in found if item.strip()]


def name_and_options(text: object, what: str) -> tuple[str, dict[str, str]]:
    """Take apart `name` or `name(option=value, ...)`, where a value may be of that form again.

    Args:
        text: What was written.
        what: What it was written for, for the error.

    Raises:
        UserError: When it is not of that form.
    """
    found = re.fullmatch(r"\s*([^()=]*[^()=\s])\s*(?:\((.*)\))?\s*", text) if isinstance(text, str) else None
    pairs = [item.partition("=") for item in items(found[2] or "")] if found else []
    if found is None or not all(key.strip() and value.strip() for key, _, value in pairs):
        raise values.refused(what, "a name, or a name with options such as `name(option=1)`", text)
    return found[1], {key.strip(): value.strip() for key, _, value in pairs}
