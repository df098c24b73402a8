"""Penalties: non-smooth terms of the lower objective, with their proximal operators."""

from blo.penalties._base import Penalty
from blo.penalties._elastic_net import ElasticNet
from blo.penalties._group_lasso import GroupLasso
from blo.penalties._l1 import L1

__all__ = ["L1", "ElasticNet", "GroupLasso", "Penalty"]
