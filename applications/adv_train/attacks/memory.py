"""Finished batches of an attack, kept in a folder so that an interrupted attack can continue."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adv_train.archives import load_arrays
from adv_train.digests import digest
from adv_train.files import make_folder, replace_file

Perturb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Memory:
    """A cache on disk for functions that map images and labels to images; the key is a digest of the arguments.

    Each part of AutoAttack seeds its random numbers anew for every batch, so the images that it makes from a batch
    depend on that batch alone, and reading them from the disk gives the same verdicts bit for bit.

    Attributes:
        folder: Folder of one attack with one set of settings on one model.
    """

    folder: Path

    def remembering(self, perturb: Perturb, name: Callable[[], str]) -> Perturb:
        """Wrap a function with the cache; `name` is called each time, and tells apart what the function computes."""

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
        """Return the memory in a subfolder, for another run of the same attack."""
        return Memory(self.folder / name)

    def forget(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path, x: Tensor) -> Tensor | None:
    """Read images of the shape and dtype of x; None if the file is missing, damaged or holds other images."""
    try:
        found = torch.from_numpy(load_arrays(path, ["images"])["images"])
    except (OSError, ValueError, TypeError):  # TypeError: the array has a dtype that torch does not have
        return None
    return found.to(x.device) if found.shape == x.shape and found.dtype == x.dtype else None
