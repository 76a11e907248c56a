"""From a model to certificates: votes under noise, and what they promise."""

from rsfl.smooth.certificate import ABSTAIN, Certificate
from rsfl.smooth.input import GaussianSmoother, LaplaceSmoother, Smoother, UniformSmoother

__all__ = ["ABSTAIN", "Certificate", "GaussianSmoother", "LaplaceSmoother", "Smoother", "UniformSmoother"]
