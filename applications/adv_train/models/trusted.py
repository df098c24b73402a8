"""The factories outside adv_train that may run if a file names them."""

from __future__ import annotations

from adv_train.errors import UserError
from adv_train.models.torchvision_models import PREFIX as TORCHVISION

_trusted: set[str] = set()


def trust(name: str) -> None:
    """Allow this process to run a factory that checkpoints and run folders name as their model.

    A name on the command line or in a call of `fit` is trusted anyway.

    Args:
        name: The factory, as ``package.module:factory``.
    """
    _trusted.add(name)


def is_foreign(name: str) -> bool:
    """Return whether the network is neither one of adv_train nor one of torchvision."""
    return ":" in name and not name.startswith(TORCHVISION)


def require_trusted(name: str, source: str) -> None:
    """Check that a model named in a file is one whose code may run.

    Args:
        name: Name of the model.
        source: The file that names it, for the error.

    Raises:
        UserError: Unless the model is one of adv_train or torchvision, or its factory is trusted.
    """
    if is_foreign(name) and name not in _trusted:
        raise UserError(
            f"{source} names the model `{name}`, which would import and run that module. If you trust it, add "
            f"--trust {name} to the command, or call adv_train.trust({name!r})."
        )
