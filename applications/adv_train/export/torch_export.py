"""Export the network with its weights as a torch.export program, which runs without this package."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from adv_train.errors import UserError
from adv_train.export.base import FORMS, Form, Logits
from adv_train.export.source import Source
from adv_train.files import replace_file


@FORMS.register("torch-export")
@dataclass(frozen=True)
class TorchExport(Form):
    """A program of torch.export for any number of images; `torch.export.load(PATH).module()` runs it."""

    # The graph computes the same function, but may order its operations differently.
    suffix, tolerance = ".pt2", 1e-5

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Write the program; the extra file ``adv_train.json`` inside it describes the model."""
        buffer = io.BytesIO()
        torch.export.save(program(source), buffer, extra_files={"adv_train.json": json.dumps(dict(source.about))})
        replace_file(path, buffer.getvalue())
        return ()

    def read(self, source: Source, path: Path) -> Logits:
        """Load the program."""
        return torch.export.load(path).module()


def program(source: Source) -> torch.export.ExportedProgram:
    """Trace the model on two images, with a dynamic number of images.

    Raises:
        UserError: If torch cannot trace the model.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(source.model, (source.images(2),), dynamic_shapes=({0: batch},))
    except Exception as error:  # a user's own model may raise anything
        raise UserError(
            f"torch.export cannot trace the model ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})."
            " The form state-dict or safetensors takes any model."
        ) from error
