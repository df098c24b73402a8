"""Training and evaluation on several devices: each device has its own process, a rank, with a part of every batch."""

from __future__ import annotations

from adv_train.ranks.draws import Stream, coins, drawing_for, exponential, normal, uniform
from adv_train.ranks.group import ALONE, Ranks, current
from adv_train.ranks.share import Share
from adv_train.ranks.start import started

__all__ = [
    "ALONE",
    "Ranks",
    "Share",
    "Stream",
    "coins",
    "current",
    "drawing_for",
    "exponential",
    "normal",
    "started",
    "uniform",
]
