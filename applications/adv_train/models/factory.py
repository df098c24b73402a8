"""Models built by the user's own code."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from adv_train.errors import UserError, unknown


def make(name: str, options: dict[str, Any], **data: Any) -> nn.Module:
    """Build a model by ``package.module:factory``.

    Args:
        name: The module, and in it the function or class that makes the model. It receives those entries of `data` for
            which it has a parameter; its parameter for ``classes`` may also be called ``num_classes``.
        options: Further arguments.
        **data: ``channels``, ``classes``, ``image_size``, ``mean`` and ``std``, as for `adv_train.models.create`.

    Raises:
        UserError: If the factory is missing, fails, or does not return a model.
    """
    place, _, factory_name = name.partition(":")
    factory = _find(place, factory_name, name)
    offered = {**data, "num_classes": data.get("classes")}
    try:
        wanted = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable written in C may have no signature
        wanted = {}  # type: ignore[assignment]
    try:
        model = factory(**{key: value for key, value in offered.items() if key in wanted}, **options)
    except Exception as error:  # the code of others may fail in any way
        raise UserError(f"`{name}` could not make a model ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"`{name}` must return a torch.nn.Module, but returns {type(model).__name__}.")
    return model


def _find(place: str, factory_name: str, name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # As `python -m` does, so that a file in the current folder is found.
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise UserError(f"Importing `{place}` failed: the package {error.name} is missing.") from error
        raise UserError(f"There is no module `{place}` for the model `{name}`.") from error
    except Exception as error:  # the code of others may fail in any way
        raise UserError(f"Importing `{place}` failed ({type(error).__name__}: {error}).") from error
    finally:
        if added:
            sys.path.remove(here)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"factory in module {place}", factory_name, public)
    return factory
