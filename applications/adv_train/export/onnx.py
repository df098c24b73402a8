"""Export the network with its weights to ONNX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from adv_train.errors import UserError
from adv_train.export.base import FORMS, Form, Logits
from adv_train.export.source import Source
from adv_train.export.torch_export import program
from adv_train.files import replace_file
from adv_train.values import Range

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@FORMS.register("onnx")
@dataclass(frozen=True)
class Onnx(Form):
    """An ONNX model from `images` to `logits` for any number of images; ONNX Runtime is compared with torch.

    Attributes:
        opset: Version of ONNX's operator set.
    """

    # ONNX Runtime adds in another order than torch, and folds BatchNorm into convolutions.
    suffix, tolerance = ".onnx", 1e-4

    opset: Annotated[int, Range(18, 23)] = 18

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Write the model; the key `adv_train` of its metadata describes the model, as JSON."""
        missing = [package for package in _PACKAGES if find_spec(package) is None]
        if missing:
            raise UserError(
                f"The form onnx needs the packages {', '.join(_PACKAGES)}, but {missing[0]} is missing; install them "
                "with: pip install 'torch-blo[onnx]'"
            )
        traced = program(source)
        try:
            made = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=self.opset,
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # a user's own operator may have no translation
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"torch.onnx cannot translate the model ({type(error).__name__}: {reason}).") from error
        assert made is not None
        made.model.metadata_props["adv_train"] = json.dumps(dict(source.about))
        replace_file(path, made.model_proto.SerializeToString())
        return (f"opset {self.opset}, input images, output logits",)

    def read(self, source: Source, path: Path) -> Logits:
        """Load the model into ONNX Runtime."""
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: _run(session, images)


def _run(session: Any, images: Tensor) -> Tensor:
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)
