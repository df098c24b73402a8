"""Export the weights, with metadata, to safetensors, a format that cannot contain code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from adv_train.export.base import FORMS, Form, Logits
from adv_train.export.source import Source
from adv_train.files import replace_file


@FORMS.register("safetensors")
@dataclass(frozen=True)
class SafeTensors(Form):
    """Weights in a safetensors file; its metadata hold model, normalisation, classes, data, norm, eps and versions."""

    suffix, tolerance = ".safetensors", 0.0

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Write the state dict; the values of the metadata are JSON."""
        from safetensors.torch import save

        # Cloned, because the format rejects tensors that share memory, such as tied weights.
        tensors = {name: value.detach().clone().contiguous() for name, value in source.model.state_dict().items()}
        replace_file(path, save(tensors, {key: json.dumps(value) for key, value in source.about.items()}))
        return ()

    def read(self, source: Source, path: Path) -> Logits:
        """Load the weights into the architecture."""
        from safetensors.torch import load_file

        model = source.blank()
        model.load_state_dict(load_file(path))
        return model
