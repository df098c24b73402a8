"""Weights that were not trained here."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adv_train.errors import UserError

_WRAPPERS = ("average", "state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Put weights from a file into a model, every one of them; nothing in the file is run.

    The file holds a state dict, alone or under one of the usual names; of a checkpoint with averaged weights these are
    taken. The prefixes that `DataParallel` and
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
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) and found[key]:
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
