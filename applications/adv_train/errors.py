"""The two ways a command ends early, and how a name that does not exist is reported."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: Names that an error lists.
_MOST = 30


class UserError(Exception):
    """Something the user can put right, told in one line: the command prints it and exits with status 2."""


class Diverged(RuntimeError):
    """The training loss or a gradient became NaN or infinite. The command exits with status 1."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Build the error for a name that is not among the valid ones.

    Args:
        kind: What was being named, in the user's words: ``"method"``, ``"data set"``.
        name: What the user wrote.
        valid: Every name that would have been accepted.

    Returns:
        An error to raise; it names the nearest valid names, where any is near, and then all of them, or the first few.
    """
    names = sorted(valid)
    lower_to_name = {valid_name.lower(): valid_name for valid_name in names}
    near = [lower_to_name[match] for match in get_close_matches(name.lower(), lower_to_name, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(f'`{match}`' for match in near)}?" if near else ""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return UserError(f"Unknown {kind} `{name}`.{hint} Valid names: {', '.join(names[:_MOST])}{more}.")
