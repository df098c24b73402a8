"""Objectives and vectors that are distributed over the processes of `torch.distributed`."""

from blo.distributed._inner import inner_product
from blo.distributed._mean import mean
from blo.errors import RankError

__all__ = ["RankError", "inner_product", "mean"]
