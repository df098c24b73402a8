"""Read and write configurations as YAML."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adv_train.config.run import RunConfig
from adv_train.errors import UserError
from adv_train.values import format_fraction


def read_yaml(path: Path) -> dict[str, Any]:
    """Read some or all values of a configuration from a YAML file.

    Raises:
        UserError: If the file is missing, is not YAML, or is not a mapping.
    """
    import yaml  # Not at the top: only the command line needs it, and `import adv_train` must work without it.

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no configuration file `{path}`.") from None
    except OSError as error:
        raise UserError(f"Cannot read the configuration `{path}`: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The configuration `{path}` is not valid YAML: {reason}") from None
    if not isinstance(found, Mapping):
        what = "is empty" if found is None else f"holds {reprlib.repr(found)}"
        raise UserError(f"The configuration `{path}` must hold lines such as `epochs: 20`, but it {what}.")
    return dict(found)


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as YAML that `read_yaml` reads back to the same values."""
    import yaml

    found = config.to_mapping()
    found["threat"]["eps"] = format_fraction(config.threat.eps)
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))
