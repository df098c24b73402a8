"""Lower solvers."""

from blo.solvers._base import Problem, Solution, Solver
from blo.solvers._default import default_solver
from blo.solvers._external import External
from blo.solvers._fista import FISTA
from blo.solvers._fixed_point import FixedPoint
from blo.solvers._given import Given
from blo.solvers._iterative import Iterative, Watch, advance, begin
from blo.solvers._lbfgs import LBFGS
from blo.solvers._levenberg_marquardt import LevenbergMarquardt
from blo.solvers._mirror_descent import MirrorDescent
from blo.solvers._newton import Newton
from blo.solvers._of_theta import functions_of_theta
from blo.solvers._one_step import OneStep
from blo.solvers._projected_gradient import ProjectedGradient
from blo.solvers._torch_opt import TorchOpt
from blo.solvers._torch_optim import TorchOptim

__all__ = [
    "FISTA",
    "LBFGS",
    "External",
    "FixedPoint",
    "Given",
    "Iterative",
    "LevenbergMarquardt",
    "MirrorDescent",
    "Newton",
    "OneStep",
    "Problem",
    "ProjectedGradient",
    "Solution",
    "Solver",
    "TorchOpt",
    "TorchOptim",
    "Watch",
    "advance",
    "begin",
    "default_solver",
    "functions_of_theta",
]
