"""Noise on pixels that keep to bounds: other inputs are refused, and radii are in pixels."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from typing_extensions import override

from rsfl._checks import number, stored
from rsfl.noise.continuous import Gaussian, Laplace, Uniform
from rsfl.noise.law import Law

__all__ = ["PixelGaussian", "PixelLaplace", "PixelUniform"]


@dataclass(frozen=True)
class _Pixels(Law):
    """What laws for pixels have in common: bounds, which inputs keep to, and the unit."""

    low: float = 0.0
    high: float = 1.0
    unit = "pixels"

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the law that comes next in line
        low, high = (number(name, getattr(self, name)) for name in ("low", "high"))
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"bounds must be (low, high) with low < high, got {(low, high)!r}")
        stored(self, low=low, high=high)

    @override
    def check(self, x: Tensor) -> None:
        outside = (x < self.low) | (x > self.high)
        if bool(outside.any()):
            where = tuple(outside.nonzero()[0].tolist())
            bytes_ = self.high == 1 and float(x.max()) > 2
            hint = "divide bytes by 255" if bytes_ else "give pixels as they are"
            raise ValueError(
                f"x must lie in the bounds [{self.low:g}, {self.high:g}], got {x[where].item()!r} "
                f"at index {where}: {hint}, and let the smoother normalise them: "
                "preprocessing=(mean, std)"
            )


@dataclass(frozen=True)
class PixelGaussian(_Pixels, Gaussian):
    """:class:`Gaussian` noise on pixels: inputs outside the bounds are refused, and radii are in
    pixels. The noisy inputs may leave the bounds.

    Args:
        sigma: Standard deviation, in pixels.
        low: Least value of a pixel.
        high: Largest value of a pixel.
    """


@dataclass(frozen=True)
class PixelUniform(_Pixels, Uniform):
    """:class:`Uniform` noise on pixels, as :class:`PixelGaussian` is Gaussian noise on them."""


@dataclass(frozen=True)
class PixelLaplace(_Pixels, Laplace):
    """:class:`Laplace` noise on pixels, as :class:`PixelGaussian` is Gaussian noise on them."""
