"""Finished batches of an attack, kept in a folder, so that an interrupted attack goes on and not anew."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adv_train.digests import digest
from adv_train.files import make_folder, replace_file

Perturb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Memory:
    """What functions from images and labels to images gave, by the content of what they got.

    The parts of AutoAttack set the random numbers anew for every batch, so the images that a part makes of a batch
    depend on nothing but that batch, and taking them from the disk gives the same verdicts bit for bit.

    Attributes:
        folder: Belongs to one attack with all its settings on one model.
    """

    folder: Path

    def remembering(self, perturb: Perturb, name: Callable[[], str]) -> Perturb:
        """Wrap a function that is deterministic for each name, which is asked for at each call."""

        def call(x: Tensor, y: Tensor) -> Tensor:
            path = self.folder / f"{name()}-{digest([x, y])[:24]}.npz"
            found = _read(path, x)
            if found is None:
                found = perturb(x, y).detach()
                make_folder(self.folder)
                archive = io.BytesIO()
                np.savez_compressed(archive, images=found.cpu().numpy())
                replace_file(path, archive.getvalue())
            return found

        return call

    def under(self, name: str) -> Memory:
        """Return a memory of another function of the same attack."""
        return Memory(self.folder / name)

    def forget(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path, x: Tensor) -> Tensor | None:
    """Read images of the shape and type of x; None if the file is missing, damaged or of other images."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            found = torch.from_numpy(archive["images"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found.to(x.device) if found.shape == x.shape and found.dtype == x.dtype else None
