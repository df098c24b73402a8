"""Trained models in the forms that others read, one file a form."""

from __future__ import annotations

from adv_train.callable_module import make_callable
from adv_train.export.base import FORMS, Form
from adv_train.export.source import Source
from adv_train.export.writing import Exported, export

__all__ = ["FORMS", "Exported", "Form", "Source", "export"]

make_callable(__name__)
