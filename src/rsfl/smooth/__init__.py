"""From a model to certificates: votes under noise, and what they promise."""

from rsfl.smooth.certificate import ABSTAIN, Certificate, floored, raised
from rsfl.smooth.input import DeformationSmoother, GaussianSmoother, LaplaceSmoother, Smoother, UniformSmoother
from rsfl.smooth.modes import evaluating
from rsfl.smooth.parameter import ParameterSmoother
from rsfl.smooth.voter import Voter

__all__ = [
    "ABSTAIN",
    "Certificate",
    "DeformationSmoother",
    "GaussianSmoother",
    "LaplaceSmoother",
    "ParameterSmoother",
    "Smoother",
    "UniformSmoother",
    "Voter",
    "evaluating",
    "floored",
    "raised",
]
