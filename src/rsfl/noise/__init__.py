"""Laws of noise. A law draws its samples and owns its norm and its radius, so they cannot be mixed
up."""

from rsfl.noise.continuous import Gaussian, Laplace, ParameterGaussian, Uniform
from rsfl.noise.law import Law
from rsfl.noise.pixels import PixelGaussian, PixelLaplace, PixelUniform
from rsfl.noise.rounded import RoundedGaussian

__all__ = [
    "Gaussian",
    "Laplace",
    "Law",
    "ParameterGaussian",
    "PixelGaussian",
    "PixelLaplace",
    "PixelUniform",
    "RoundedGaussian",
    "Uniform",
]
