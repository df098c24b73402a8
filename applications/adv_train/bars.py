"""Progress bars for terminals and notebooks."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")  # The kernel of a notebook has imported it.
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def are_shown(wanted: bool | None) -> bool:
    """Return whether to show progress bars.

    Args:
        wanted: The user's choice; ``None`` shows bars on a terminal and in a notebook.
    """
    return sys.stderr.isatty() or in_notebook() if wanted is None else wanted


def progress_bar(*, shown: bool, **settings: Any) -> tqdm[Any]:
    """Create a progress bar: a widget in a notebook with ipywidgets, text on stderr elsewhere.

    Args:
        shown: Whether to show the bar; a hidden bar counts but prints nothing.
        **settings: Arguments of tqdm.
    """
    # Not `tqdm.auto`, which warns when it is imported in a notebook without ipywidgets.
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm_notebook

        return tqdm_notebook(file=sys.stderr, disable=not shown, **settings)
    from tqdm import tqdm  # Not at the top: `import adv_train` must work without it.

    return tqdm(file=sys.stderr, disable=not shown, **settings)
