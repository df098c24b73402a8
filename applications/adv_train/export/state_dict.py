"""Export the weights alone, as torch.save writes them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch

from adv_train.export.base import FORMS, Form, Logits
from adv_train.export.source import Source
from adv_train.files import replace_file


@FORMS.register("state-dict")
@dataclass(frozen=True)
class StateDict(Form):
    """Weights in a file of torch.save, which `torch.load(weights_only=True)` reads."""

    suffix, tolerance = ".pt", 0.0

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Write the state dict, which includes the normalisation."""
        buffer = io.BytesIO()
        torch.save({name: value.detach().contiguous() for name, value in source.model.state_dict().items()}, buffer)
        replace_file(path, buffer.getvalue())
        return ()

    def read(self, source: Source, path: Path) -> Logits:
        """Load the weights into the architecture."""
        model = source.blank()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model
