"""The networks of a comparison: how they are named, and whether a forward pass costs the same on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adv_train.bench import pass_cost
from adv_train.config import RunConfig
from adv_train.errors import UserError
from adv_train.models import MODELS


def network(config: RunConfig) -> str:
    """Name the network of a run, with the options that differ from their defaults: `wrn-16-8(widening=2)`."""
    name, options = config.model.name, config.model.options
    defaults = {key: leaf.default for key, leaf in MODELS.options(name).items()} if name in MODELS.names() else {}
    told = [
        f"{key}={'none' if value is None else value}"
        for key, value in sorted(options.items())
        if key not in defaults or value != defaults[key]
    ]
    return f"{name}({', '.join(told)})" if told else name


def networks(configs: Mapping[str, RunConfig]) -> dict[str, list[str]]:
    """Return the names of the methods that train each network, by the name of the network."""
    found: dict[str, list[str]] = {}
    for method, config in configs.items():
        found.setdefault(network(config), []).append(method)
    return found


def check_passes(configs: Mapping[str, RunConfig], arguments: Mapping[str, Any]) -> None:
    """Check that F, the cost of a forward pass, is the same for all methods, so that their costs can be equal.

    Args:
        configs: The configuration of each method, by its name.
        arguments: The keyword arguments for `adv_train.models.create` that depend on the data.

    Raises:
        UserError: If the networks differ in the floating-point operations of a forward pass.
    """
    found = networks(configs)
    costs = {name: pass_cost(configs[methods[0]], arguments) for name, methods in found.items()}
    if len(set(costs.values())) > 1:
        told = ", ".join(f"{cost:,.0f} on {name} ({', '.join(found[name])})" for name, cost in costs.items())
        raise UserError(
            "`cost` is in forward passes, F, and needs networks on which they cost the same, but the floating-point "
            f"operations of a pass on one image are {told}. Compare methods on one network, or leave `cost` out."
        )
