"""The cost of the methods: counted forward passes, and ratios of times measured in one run."""

from adv_train.bench.count import forward_equivalents, step_cost
from adv_train.bench.run import Row, record, run, table

__all__ = ["Row", "forward_equivalents", "record", "run", "step_cost", "table"]
