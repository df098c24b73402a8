"""The two exceptions of this package, and the error for an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: Largest number of names that an error lists.
_MOST = 30


class UserError(Exception):
    """An error that the user can fix. Its message is one line; a command prints it and exits with status 2."""


class Diverged(RuntimeError):
    """The training loss or a gradient became NaN or infinite. The command exits with status 1."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a name that is not valid.

    Args:
        kind: The kind of thing that is named, such as ``"method"`` or ``"data set"``.
        name: The name that the user gave.
        valid: All valid names.

    Returns:
        The error to raise. Its message suggests similar valid names, if there are any, and lists all valid names or the
        first 30.
    """
    names = sorted(valid)
    lower_to_name = {valid_name.lower(): valid_name for valid_name in names}
    near = [lower_to_name[match] for match in get_close_matches(name.lower(), lower_to_name, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(f'`{match}`' for match in near)}?" if near else ""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return UserError(f"Unknown {kind} `{name}`.{hint} Valid names: {', '.join(names[:_MOST])}{more}.")
