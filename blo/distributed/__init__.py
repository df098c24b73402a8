"""Objectives whose data is distributed over the processes of `torch.distributed`."""

from blo.distributed._mean import mean
from blo.errors import RankError

__all__ = ["RankError", "mean"]
