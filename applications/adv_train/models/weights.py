"""Weights that were not trained here."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adv_train.errors import UserError
from adv_train.models.published_names import UNUSED, our_names

_WRAPPERS = ("average", "state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Put weights from a file into a model, every one of them; nothing in the file is run.

    The file holds a state dict, alone or under one of the usual names; of a checkpoint with averaged weights these are
    taken. The prefixes that `DataParallel` and `torch.compile` put before names are taken off where the model does not
    have them, and the names of RobustBench's networks are understood.

    Raises:
        UserError: When the file is missing, holds no weights, or these do not fit the model.
    """
    expected = model.state_dict()
    state = _renamed(_state(path), expected, path)
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


def _renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain = {key: _without_prefixes(key, expected) for key in state}
    known = our_names(plain.values(), expected)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = known.get(plain[key], plain[key])
        if name in renamed:
            raise UserError(f"The weights in `{path}` hold {name} twice, under two names.")
        if name.startswith(UNUSED) and name not in expected:
            continue
        if name.startswith("normalise.") and name in expected and value.numel() == expected[name].numel():
            value = value.reshape(expected[name].shape)
        renamed[name] = value
    return renamed


def _without_prefixes(key: str, expected: Mapping[str, Tensor]) -> str:
    while key not in expected and key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    # A part of the model may have been compiled by itself.
    return key if key in expected else key.replace("._orig_mod.", ".")
