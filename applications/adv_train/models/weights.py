"""Loads weights from a file that another program has written."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adv_train.errors import UserError
from adv_train.models.foreign import NORMALISATION, check_padding, translation

#: The normalisation for weights whose file has no mean and standard deviation.
Normalisation: TypeAlias = Literal["data", "none"]
_WRAPPERS = ("average", "state_dict", "model_state_dict", "model", "net", "weights", "last")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(
    model: nn.Module,
    path: Path,
    normalisation: Normalisation | None = None,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Load all weights of a model from a file, without running any code in the file.

    The file holds a state dict, alone or under one of the usual names, or is in the safetensors format. If a checkpoint
    has averaged weights, the average is loaded. The prefixes that `DataParallel` and `torch.compile` put before names
    are removed unless the model has them too. RobustBench's names of layers in ResNets, pre-activation ResNets and wide
    ResNets are translated.

    Args:
        model: The model.
        path: The file.
        normalisation: Only for a file without mean and standard deviation: ``"data"`` if the weights were trained with
            the mean and standard deviation that the model has, ``"none"`` if they were trained on images in [0, 1].
        network: Name and options of the model, for comparison with those in a checkpoint of a run: weights fit another
            activation, but are not those of this network.

    Raises:
        UserError: If the file is missing or holds no weights, the weights do not fit the model, or `normalisation` is
            missing or not needed. If the file is a checkpoint of a run of another network than `network`.
    """
    expected = model.state_dict()
    content = _read(path)
    _check_network(content, network, path)
    state = _renamed(_state(content, path), expected.keys(), path)
    check_padding(model, state, path)
    state = _translated(state, expected, path)
    silent = set(NORMALISATION) <= expected.keys() and not state.keys() & set(NORMALISATION)
    _check_fit(state, {key: value for key, value in expected.items() if not (silent and key in NORMALISATION)}, path)
    if silent:
        state |= _normalisation(expected, normalisation, path)
    elif normalisation is not None:
        raise UserError(
            f"Leave out `normalisation`: it is for weights without mean and standard deviation, but those in `{path}` "
            "have them, or the model does not normalise."
        )
    model.load_state_dict(state, strict=True)


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
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
        raise UserError(f"The weights in `{path}` are not finite, for instance in {broken[0]}.")


def _check_network(content: Any, network: Mapping[str, Any] | None, path: Path) -> None:
    stated = content.get("config") if isinstance(content, Mapping) else None
    stated = stated.get("model") if isinstance(stated, Mapping) else None
    if network is None or not isinstance(stated, Mapping) or ":" in f"{stated.get('name')}{network['name']}":
        return
    differing = [key for key in network if key in stated and stated[key] != network[key]]
    if differing:
        ours, theirs = (", ".join(f"{key}={found[key]}" for key in differing) for found in (network, stated))
        raise UserError(f"`{path}` holds the weights of a network with {theirs}, but the model has {ours}.")


def _read(path: Path) -> Any:
    try:
        return _load(path)
    except FileNotFoundError:
        raise UserError(f"There is no weights file `{path}`.") from None
    except OSError as error:
        raise UserError(f"Cannot read the weights `{path}`: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"`{path}` holds objects other than tensors and plain values, which could run code when loaded, or was not "
            "written by torch.save. Nothing was loaded: save `model.state_dict()` instead of the model."
        ) from error
    except Exception as error:  # a damaged file can raise any error
        raise UserError(
            f"`{path}` is not a weights file that PyTorch or safetensors can read, or is damaged."
        ) from error


def _state(found: Any, path: Path) -> Mapping[str, Tensor]:
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


def _load(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file  # Not at the top: `import adv_train` works without it.

    return load_file(path)


def _renamed(state: Mapping[str, Tensor], wanted: Any, path: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        plain = key
        while plain not in wanted and plain.startswith(_PREFIXES):
            plain = plain.partition(".")[2]
        if plain not in wanted:
            plain = plain.replace("._orig_mod.", ".")  # only a part of the model was compiled
        if plain in renamed:
            raise UserError(f"The weights in `{path}` hold {plain} twice, once with a prefix.")
        renamed[plain] = value
    return renamed


def _translated(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {name: name for name in state} | translation(state.keys(), expected.keys())
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if (own := names[name]) in ours:
            raise UserError(f"The weights in `{path}` hold {own} twice, once under the name {name}.")
        if own is not None:
            ours[own] = value
    for name in expected.keys() & NORMALISATION & ours.keys():
        if ours[name].numel() == expected[name].numel():
            ours[name] = ours[name].reshape(expected[name].shape)
    # PyTorch before 0.4.1 did not count batches. Without the counts we keep ours, which BatchNorm with a momentum does
    # not use.
    counts = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    return ours if counts.keys() & ours.keys() else counts | ours


def _normalisation(
    expected: Mapping[str, Tensor], normalisation: Normalisation | None, path: Path
) -> dict[str, Tensor]:
    if normalisation is None:
        raise UserError(
            f"The weights in `{path}` do not say how images were normalised. Choose the normalisation `data` (mean and "
            "standard deviation of the data set) or `none` (images in [0, 1] as they are), by --normalisation of "
            "`adv-train eval` or --init-normalisation of `adv-train fit`."
        )
    mean, std = (expected[name] for name in NORMALISATION)
    chosen = (mean, std) if normalisation == "data" else (torch.zeros_like(mean), torch.ones_like(std))
    return dict(zip(NORMALISATION, chosen, strict=True))
