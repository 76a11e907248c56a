"""Affine warps: rotations, shifts, scalings, and all of them."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import count, number
from rsfl.deform.deformation import GaussianDeformation, UniformDeformation, points

__all__ = ["Affine", "Rotation", "Scaling", "Translation"]


@dataclass(frozen=True)
class Rotation(UniformDeformation):
    r"""Rotation about the centre by an angle uniform on [-half_width, half_width]: certificates in
    radians.

    A positive angle turns the image counter-clockwise. The rotation is rigid in pixels, whatever
    the image's sides.

    Args:
        half_width: Largest angle, in radians, at most pi (the papers print fractions of
            :math:`\pi`).
        padding: ``zeros``, ``border`` or ``reflection``.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> Rotation(math.pi)(image, torch.tensor([[math.pi / 2]], dtype=torch.float64))
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """

    unit = "radians"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.half_width > math.pi:
            raise ValueError(
                f"half_width must be at most pi radians, half a turn, got {self.half_width!r}: "
                f"{self.half_width:g} degrees are math.radians({self.half_width:g}) = "
                f"{math.radians(self.half_width):.4g}"
            )

    @override
    def dim(self, height: int, width: int) -> int:
        return 1

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        angle = params[:, 0]
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        aspect = (height - 1) / (width - 1)
        return _affine_grid([cos, -sin * aspect, zero, sin / aspect, cos, zero], height, width)


@dataclass(frozen=True)
class Translation(GaussianDeformation):
    """Shifts (right, down) of the points that are read, in half images, each N(0, sigma^2):
    certificates in l2.

    A half image is (W - 1) / 2 pixels to the right and (H - 1) / 2 pixels down; :meth:`pixels`
    converts.

    Args:
        sigma: Standard deviation in half images.
        padding: ``zeros``, ``border`` or ``reflection``.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
        >>> Translation(0.1)(image, torch.tensor([[1.0, 0.0]]))  # one half image: 1 pixel
        tensor([[[[2., 3., 0.],
                  [5., 6., 0.],
                  [8., 9., 0.]]]])
        >>> Translation(0.1).pixels(0.25, height=33, width=17)
        (2.0, 4.0)
    """

    unit = "half images"

    @override
    def dim(self, height: int, width: int) -> int:
        return 2

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        right, down = params.unbind(1)
        zero, one = torch.zeros_like(right), torch.ones_like(right)
        return _affine_grid([one, zero, right, zero, one, down], height, width)

    def pixels(self, distance: float, *, height: int, width: int) -> tuple[float, float]:
        """A distance in half images in pixels along x and along y, rounded down: the semi-axes of a
        certified ball, which is an ellipse unless the image is square."""
        exact = Fraction(number("distance", distance, 0, np.inf, open_high=True))
        height, width = count("height", height, 2), count("width", width, 2)
        return _rounded_down(exact * (width - 1) / 2), _rounded_down(exact * (height - 1) / 2)


@dataclass(frozen=True)
class Scaling(UniformDeformation):
    """Coordinates multiplied by 1 + s about the centre, s uniform on [-half_width, half_width]:
    positive s shrinks.

    Args:
        half_width: Largest change of scale, below 1, so that the noise keeps the image upright.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    unit = "scale"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("half_width", self.half_width, 0, 1, open_low=True, open_high=True)

    @override
    def dim(self, height: int, width: int) -> int:
        return 1

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        scale = 1 + params[:, 0]
        zero = torch.zeros_like(scale)
        return _affine_grid([scale, zero, zero, zero, scale, zero], height, width)


@dataclass(frozen=True)
class Affine(GaussianDeformation):
    """The point (x, y) reads (x + a x + b y + c, y + d x + e y + f), all six N(0, sigma^2):
    certificates in l2.

    Coordinates and coefficients are half images: c and f are those of :class:`Translation`.

    Args:
        sigma: Standard deviation of each coefficient.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    unit = "affine coefficients"

    @override
    def dim(self, height: int, width: int) -> int:
        return 6

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        a, b, c, d, e, f = params.unbind(1)
        return _affine_grid([1 + a, b, c, d, 1 + e, f], height, width)


def _rounded_down(exact: Fraction) -> float:
    value = float(exact)
    return value if value <= exact else float(np.nextafter(value, 0))


def _affine_grid(rows: list[Tensor], height: int, width: int) -> Tensor:
    """The points of affine maps, from their six coefficients (N,)."""
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    moved = points(theta, height, width).view(-1, 3) @ theta.mT
    return moved.view(-1, height, width, 2)
