"""Reproduce published tables at a chosen scale: the published figures, the runs, and the measured figures."""

from __future__ import annotations

from adv_train.reproduction.cost import Cost, costs
from adv_train.reproduction.made import Reproduction
from adv_train.reproduction.planned import Block, Blocks, plan
from adv_train.reproduction.published import TABLES, Published, PublishedTable
from adv_train.reproduction.scale import SCALES, Scale

__all__ = [
    "SCALES",
    "TABLES",
    "Block",
    "Blocks",
    "Cost",
    "Published",
    "PublishedTable",
    "Reproduction",
    "Scale",
    "costs",
    "plan",
]
