"""A check of the installed distributions before anything runs, since a machine with a GPU may have no network."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
#: Modules whose names differ from the distribution's.
_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "pyyaml": "yaml", "docstring-parser": "docstring_parser"}


def unusable() -> list[str]:
    """Import what `blo` and `adv_train` need, and return a line for each distribution that cannot be imported."""
    with _PROJECT.open("rb") as file:
        project = tomllib.load(file)["project"]
    found = []
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["adv-train"]):
        name = re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]
        try:
            import_module(_MODULES.get(name, name))
        except Exception as error:  # a package made for another torch can raise any error
            found.append(f"{requirement} ({type(error).__name__}: {error})")
    return found
