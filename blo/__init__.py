"""Bilevel optimisation for PyTorch: hypergradients that are right, or say why not."""

from blo import distributed as distributed
from blo._argmin import argmin
from blo._check import check_hypergrad
from blo._duals import duals
from blo._functionalize import functionalize
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._lower import LowerProblem
from blo._status import Status
from blo._upper import FitResult, FitStep, fit
from blo.errors import (
    BloError,
    BloWarning,
    ConstantWarning,
    ConvergenceError,
    ConvergenceWarning,
    DegenerateWarning,
    DerivativeError,
    FixedStepsWarning,
    InfeasibleError,
    NonFiniteError,
    StructureError,
)
from blo.gradients import SAMA, HessianFree, Implicit, KKTClosedForm, Unrolled, ValueFunction, Zero
from blo.linsolve import CG, GMRES, MINRES, Auto, Direct, Identity, Neumann, Nystrom
from blo.penalties import L1, ElasticNet, GroupLasso
from blo.sets import (
    Affine,
    Box,
    Free,
    Halfspaces,
    Intersection,
    L1Ball,
    L2Ball,
    NonNegative,
    Product,
    Simplex,
    SmoothConstraints,
)
from blo.solvers import (
    FISTA,
    LBFGS,
    External,
    FixedPoint,
    Given,
    LevenbergMarquardt,
    MirrorDescent,
    Newton,
    OneStep,
    ProjectedGradient,
    TorchOpt,
    TorchOptim,
)
from blo.stochastic import BOME, F2SA, MASOBA, SABA, SOBA, AmIGO, StocBiO

__version__ = "0.1.0"

__all__ = [
    "BOME",
    "CG",
    "F2SA",
    "FISTA",
    "GMRES",
    "L1",
    "LBFGS",
    "MASOBA",
    "MINRES",
    "SABA",
    "SAMA",
    "SOBA",
    "Affine",
    "AmIGO",
    "Auto",
    "BloError",
    "BloWarning",
    "Box",
    "ConstantWarning",
    "ConvergenceError",
    "ConvergenceWarning",
    "DegenerateWarning",
    "DerivativeError",
    "Direct",
    "ElasticNet",
    "External",
    "FitResult",
    "FitStep",
    "FixedPoint",
    "FixedStepsWarning",
    "Free",
    "Given",
    "GroupLasso",
    "Halfspaces",
    "HessianFree",
    "Hypergradient",
    "Identity",
    "Implicit",
    "InfeasibleError",
    "Intersection",
    "KKTClosedForm",
    "L1Ball",
    "L2Ball",
    "LevenbergMarquardt",
    "LowerProblem",
    "MirrorDescent",
    "Neumann",
    "Newton",
    "NonFiniteError",
    "NonNegative",
    "Nystrom",
    "OneStep",
    "Product",
    "ProjectedGradient",
    "Simplex",
    "SmoothConstraints",
    "Status",
    "StocBiO",
    "StructureError",
    "TorchOpt",
    "TorchOptim",
    "Unrolled",
    "ValueFunction",
    "Zero",
    "argmin",
    "check_hypergrad",
    "duals",
    "fit",
    "functionalize",
    "value_and_hypergrad",
]
