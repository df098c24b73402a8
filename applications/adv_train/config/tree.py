"""Convert a configuration between two forms: nested by section, and flat by the short names of the flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from adv_train.config.optimizer import BELONGS, OptimizerConfig
from adv_train.config.sections import ComputeConfig, DataConfig, ModelConfig, TrainingConfig
from adv_train.errors import UserError, unknown
from adv_train.leaves import Leaf, leaves
from adv_train.methods import METHODS
from adv_train.models import MODELS
from adv_train.threat import Threat

#: The sections whose fields depend neither on the method nor on the model.
_FIXED: Final = {
    "data": DataConfig,
    "threat": Threat,
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "compute": ComputeConfig,
}
SECTIONS: Final = ("data", "method", "model", "threat", "training", "optimizer", "compute")
#: Fields whose short name differs from the name of the field.
_SHORT: Final = {
    ("data", "name"): "data",
    ("data", "root"): "data_root",
    ("data", "limit"): "train_limit",
    ("model", "name"): "model",
    ("method", "name"): "method",
    ("optimizer", "name"): "optimizer",
    ("optimizer", "options"): "optimizer_options",
}
#: Fields of the section `model` that every network has.
INIT: Final = ("init", "init_normalisation")
_RANGE_OF_IMAGES: Final = ("low", "high")


def short(section: str, field: str) -> str:
    """Return the short name of a field."""
    return _SHORT.get((section, field), field)


def _belonging(choice: str) -> list[str]:
    return [short("optimizer", field) for field, (of, _) in BELONGS.items() if of == choice]


#: By short name: the default, and the fields whose values are dropped when another value replaces it.
_DROPS: Final = {
    "optimizer": (OptimizerConfig.name, ["optimizer_options", *_belonging("name")]),
    "schedule": (OptimizerConfig.schedule, _belonging("schedule")),
    "norm": ("linf", ["eps", "step"]),  # lengths in this norm
}


def fields(section: str, choice: str | None = None) -> list[Leaf]:
    """Return the fields of a section.

    Args:
        section: One of `SECTIONS`.
        choice: The method or the model whose options to include; None leaves options out.

    Raises:
        UserError: If there is no such method or model.
    """
    if section in _FIXED:
        return [leaf for leaf in leaves(_FIXED[section]) if leaf.field not in _RANGE_OF_IMAGES]
    about = "Training method (see `adv-train list`)." if section == "method" else "Network (see `adv-train list`)."
    name = Leaf("name", str, None, True, about)
    if section == "method":
        return [name] if choice is None else [name, *METHODS.options(choice).values()]
    always = [name, *(leaf for leaf in leaves(ModelConfig) if leaf.field in INIT)]
    if choice is None or ":" in choice:  # the options of a user's own factory are not known here
        return always
    return [*always, *MODELS.options(choice).values()]


def nested(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort values into their sections.

    Args:
        found: Values by section, by short name, or a mixture of both.

    Raises:
        UserError: If a key is unknown, or the data set, the method or the model is missing.
    """
    given = flat(found)
    for key in ("data", "method", "model"):
        if not isinstance(given.get(key), str):
            raise UserError(f"The configuration has no `{key}`: add its name.")
    sorted_: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    places = {
        short(section, leaf.field): (section, leaf)
        for section in SECTIONS
        for leaf in fields(section, given.get(section))
    }
    for key in given:
        if key not in places:
            raise _misplaced(key, given["method"], places)
    for key, value in given.items():
        section, leaf = places[key]
        sorted_[section][leaf.field] = leaf.read(value, key)
    return sorted_


def check_names(found: Mapping[str, Any]) -> None:
    """Check that each short name exists for some method and model.

    Raises:
        UserError: If one does not; the message suggests the nearest names.
    """
    known = {short(section, leaf.field) for section in SECTIONS for leaf in fields(section)}
    known |= {
        option for registry in (METHODS, MODELS) for name in registry.names() for option in registry.options(name)
    }
    for key in found:
        if key not in known:
            raise unknown("configuration key", key, known)


def flat(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge layers into values by short name; later layers override earlier ones.

    If a layer replaces the method, model, optimiser or schedule, the options of the old one are dropped; if it replaces
    the norm, the old eps and the old step are dropped.

    Raises:
        UserError: If a section is not a mapping.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        given: dict[str, Any] = {}
        for key, value in layer.items():
            if key in SECTIONS and isinstance(value, Mapping):
                given |= {short(key, str(field).replace("-", "_")): inner for field, inner in value.items()}
            elif key in SECTIONS and key not in ("data", "method", "model", "optimizer"):
                raise UserError(f"`{key}` must hold lines such as `{fields(key)[0].field}: ...`, but is {value!r}.")
            else:
                given[str(key).replace("-", "_")] = value
        for section in ("method", "model"):
            before, now = merged.get(section), given.get(section, merged.get(section))
            if before is not None and now != before:
                for leaf in fields(section, before):
                    merged.pop(short(section, leaf.field), None)
        for choice, (usual, dependent) in _DROPS.items():
            before = merged.get(choice, usual)
            if given.get(choice, before) != before:
                for name in dependent:
                    merged.pop(name, None)
        merged |= given
    return merged


def plain(config: Any) -> dict[str, dict[str, Any]]:
    """Return the values of a run's configuration by section, as plain values."""
    method = {leaf.field: getattr(config.method, leaf.field) for leaf in fields("method", config.method_name)[1:]}
    parts: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        part = getattr(config, section)
        if section == "method":
            parts[section] = {"name": config.method_name, **{key: _plain(value) for key, value in method.items()}}
        elif section == "model":
            parts[section] = {"name": part.name, **{key: getattr(part, key) for key in INIT}, **part.options}
        else:
            parts[section] = {leaf.field: getattr(part, leaf.field) for leaf in fields(section)}
    return parts


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _misplaced(key: str, method: str, places: Mapping[str, Any]) -> UserError:
    others = [name for name in METHODS.names() if key in METHODS.options(name)]
    if others:
        own = ", ".join(METHODS.options(method)) or "no options"
        return UserError(f"method {method!r} has no option `{key}` (but {', '.join(others)} has); it has {own}.")
    return unknown("configuration key", key, places)
