"""Models and weights that were not trained here."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train import models
from adv_train.errors import UserError, unknown

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.")


def make_model(name: str, **data: Any) -> nn.Module:
    """Build a model by the name of one of ours, or by ``package.module:factory``.

    Args:
        name: A name of `adv_train.models.MODELS.names()`, or where a function or class is that makes the model. A factory is
            given those of `data` that it has parameters for; its class count may also be called ``num_classes``.
        **data: ``channels``, ``classes``, ``image_size``, ``mean`` and ``std``, as for `adv_train.models.create`.

    Raises:
        UserError: When the name is unknown, or the factory is missing, fails, or makes no model.
    """
    place, colon, factory_name = name.partition(":")
    if not colon:
        if name not in models.MODELS.names():
            raise unknown("model", name, [*models.MODELS.names(), "package.module:factory"])
        return models.create(name, **data, seed=0)
    factory = _find(place, factory_name, name)
    offered = {**data, "num_classes": data.get("classes")}
    try:
        wanted = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable written in C has none
        wanted = {}  # type: ignore[assignment]
    try:
        model = factory(**{key: value for key, value in offered.items() if key in wanted})
    except Exception as error:  # the code of others may fail in any way
        raise UserError(f"`{name}` could not make a model ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"`{name}` must return a torch.nn.Module, but returns {type(model).__name__}.")
    return model


def _find(place: str, factory_name: str, name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # As `python -m` has it, so that a file in this folder is found.
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise UserError(f"Importing `{place}` failed: the package {error.name} is missing.") from error
        raise UserError(f"There is no module `{place}` to take the model `{name}` from.") from error
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


def load_weights(model: nn.Module, path: Path) -> None:
    """Put weights from a file into a model, every one of them; nothing in the file is run.

    The file holds a state dict, alone or under one of the usual names. The prefixes that `DataParallel` and
    `torch.compile` put before names are taken off where the model does not have them.

    Raises:
        UserError: When the file is missing, holds no weights, or these do not fit the model.
    """
    state = _renamed(_state(path), model.state_dict().keys(), path)
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    problems = [("it lacks", missing), ("the model lacks", unexpected), ("shapes differ:", sorted(shapes))]
    told = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' * (len(keys) > 3)}"
        for what, keys in problems
        if keys
    ]
    if told:
        raise UserError(f"The weights in `{path}` do not fit the model: {'; '.join(told)}.")
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise UserError(f"The weights in `{path}` are not finite, in {broken[0]} for one.")
    model.load_state_dict(state, strict=True)


def _state(path: Path) -> Mapping[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no weights file `{path}`.") from None
    except OSError as error:
        raise UserError(f"Cannot read the weights `{path}`: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"`{path}` holds objects other than tensors and plain values, which could run code when loaded, or is no "
            "file of torch.save. Nothing was loaded: save `model.state_dict()` instead of the model."
        ) from error
    except Exception as error:  # damaged files fail in any way
        raise UserError(f"`{path}` is not a weights file that PyTorch can read, or is damaged.") from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"`{path}` holds no weights: it needs a mapping from names to tensors, alone or under one of "
            f"{', '.join(_WRAPPERS)}."
        )
    return {str(key): value for key, value in found.items()}


def _renamed(state: Mapping[str, Tensor], wanted: Any, path: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        plain = key
        while plain not in wanted and plain.startswith(_PREFIXES):
            plain = plain.partition(".")[2]
        if plain not in wanted:
            plain = plain.replace("._orig_mod.", ".")  # a part of the model that was compiled by itself
        if plain in renamed:
            raise UserError(f"The weights in `{path}` hold {plain} twice, once with a prefix.")
        renamed[plain] = value
    return renamed
