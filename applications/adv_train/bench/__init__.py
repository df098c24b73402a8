"""The cost of the methods: counted forward passes, and ratios of times measured in one run."""

from adv_train.bench.count import forward_equivalents, pass_cost, step_cost
from adv_train.bench.epoch import Epoch
from adv_train.bench.run import Row, run
from adv_train.bench.tables import epochs, record, table

__all__ = ["Epoch", "Row", "epochs", "forward_equivalents", "pass_cost", "record", "run", "step_cost", "table"]
