"""Parse names with options, such as `pgd(steps=20, restarts=2)`, and lists of them."""

from __future__ import annotations

import re
from typing import Final

from adv_train import values

_DEPTH: Final = {"(": 1, "[": 1, ")": -1, "]": -1}


def items(text: str) -> list[str]:
    """Split a list at its commas, except those inside brackets; empty items are left out."""
    found, depth = [""], 0
    for letter in text:
        depth += _DEPTH.get(letter, 0)
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [item.strip() for item in found if item.strip()]


def name_and_options(text: object, what: str) -> tuple[str, dict[str, str]]:
    """Parse `name` or `name(option=value, ...)`, where a value may itself have this form.

    Args:
        text: The text to parse.
        what: Name of the setting that the text is a value of, for the error.

    Returns:
        The name, and the value of each option as text.

    Raises:
        UserError: If the text does not have this form.
    """
    found = re.fullmatch(r"\s*([^()=]*[^()=\s])\s*(?:\((.*)\))?\s*", text) if isinstance(text, str) else None
    pairs = [item.partition("=") for item in items(found[2] or "")] if found else []
    if found is None or not all(key.strip() and value.strip() for key, _, value in pairs):
        raise values.refused(what, "a name, or a name with options such as `name(option=1)`", text)
    return found[1], {key.strip(): value.strip() for key, _, value in pairs}
