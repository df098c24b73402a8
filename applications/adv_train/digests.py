"""Digests of plain values and tensors: equal content has the same digest on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(content: Any) -> str:
    """Return the SHA-256 of nested mappings and sequences of plain values and tensors, as 64 hexadecimal digits."""
    found = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            # Viewed as bytes, because NumPy has no bfloat16.
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                found.update(repr(key).encode())
                take(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                take(part)
        else:
            found.update(repr(value).encode())

    take(content)
    return found.hexdigest()
