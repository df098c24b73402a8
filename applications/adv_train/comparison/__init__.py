"""Compare several methods: train them with the same seeds, optionally at equal cost, and test the differences."""

from __future__ import annotations

from adv_train.comparison.cell import Cell, Judgement
from adv_train.comparison.contenders import Contender, contenders
from adv_train.comparison.plan import Plan, Planned, plan
from adv_train.comparison.record import Comparison
from adv_train.comparison.results import Result

__all__ = ["Cell", "Comparison", "Contender", "Judgement", "Plan", "Planned", "Result", "contenders", "plan"]
