"""Progress bars: where they are shown, and of which kind."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Tell whether this process computes the cells of a notebook."""
    ipython = sys.modules.get("IPython")  # A kernel has it imported.
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def are_shown(wanted: bool | None) -> bool:
    """Decide whether bars are shown.

    Args:
        wanted: What the user says; ``None`` shows them on a terminal and in a notebook.
    """
    return sys.stderr.isatty() or in_notebook() if wanted is None else wanted


def progress_bar(*, shown: bool, **settings: Any) -> tqdm[Any]:
    """Make a bar: of widgets in a notebook that has them, of letters on stderr elsewhere.

    Args:
        shown: A bar that is not shown counts, and writes nothing.
        **settings: As tqdm takes them.
    """
    # Not `tqdm.auto`: in a notebook without widgets it warns, and at import.
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm_notebook

        return tqdm_notebook(file=sys.stderr, disable=not shown, **settings)
    from tqdm import tqdm  # Not at the top: `import adv_train` works without it.

    return tqdm(file=sys.stderr, disable=not shown, **settings)
