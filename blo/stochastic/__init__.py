"""Single-loop and stochastic bilevel algorithms over minibatches, with explicit state."""

from blo.stochastic._amigo import AmIGO
from blo.stochastic._base import Algorithm, State
from blo.stochastic._batches import draw
from blo.stochastic._bome import BOME
from blo.stochastic._f2sa import F2SA
from blo.stochastic._masoba import MASOBA
from blo.stochastic._run import run
from blo.stochastic._saba import SABA
from blo.stochastic._schedule import Power
from blo.stochastic._soba import SOBA
from blo.stochastic._stocbio import StocBiO

__all__ = ["BOME", "F2SA", "MASOBA", "SABA", "SOBA", "Algorithm", "AmIGO", "Power", "State", "StocBiO", "draw", "run"]
