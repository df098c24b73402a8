"""What a model's loss does around images, measured without an attack."""

from __future__ import annotations

from adv_train.measures.gradient_alignment import alignment, cosines
from adv_train.measures.loss_landscape import Landscape, landscape
from adv_train.measures.one_step import survives_one_step

__all__ = ["Landscape", "alignment", "cosines", "landscape", "survives_one_step"]
