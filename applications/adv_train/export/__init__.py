"""Export trained models in forms that other programs read: one module for each form."""

from __future__ import annotations

from adv_train.callable_module import make_callable
from adv_train.export.base import FORMS, Form
from adv_train.export.source import Source
from adv_train.export.writing import Exported, export

__all__ = ["FORMS", "Exported", "Form", "Source", "export"]

make_callable(__name__)
