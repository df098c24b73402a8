"""Several methods trained with paired seeds, at equal cost where wanted, and compared."""

from __future__ import annotations

from adv_train.comparison.cell import Cell, Judgement
from adv_train.comparison.contenders import Contender, contenders
from adv_train.comparison.plan import Plan, Planned, plan
from adv_train.comparison.record import Comparison

__all__ = ["Cell", "Comparison", "Contender", "Judgement", "Plan", "Planned", "contenders", "plan"]
