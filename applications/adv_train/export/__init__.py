"""Trained models in the forms that others read, one file a form."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from adv_train.export.base import FORMS, Form
from adv_train.export.source import Source
from adv_train.export.writing import Exported, export

__all__ = ["FORMS", "Exported", "Form", "Source", "export"]


class _CallableModule(ModuleType):
    """Lets `adv_train.export` be the function whether or not this package was imported under the same name."""

    def __call__(self, *arguments: Any, **named: Any) -> Exported:
        return export(*arguments, **named)


sys.modules[__name__].__class__ = _CallableModule
