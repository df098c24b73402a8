"""Measures of a model's loss in a neighbourhood of images; none needs more than one step of an attack."""

from __future__ import annotations

from adv_train.measures.gradient_alignment import alignment, cosines
from adv_train.measures.loss_landscape import Landscape, landscape
from adv_train.measures.one_step import survives_one_step

__all__ = ["Landscape", "alignment", "cosines", "landscape", "survives_one_step"]
