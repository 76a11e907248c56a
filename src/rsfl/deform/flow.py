"""Flows: warps that move one pixel otherwise than another."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import count, stored
from rsfl.deform.deformation import GaussianDeformation, points

__all__ = ["DCT", "PixelFlow"]


@dataclass(frozen=True)
class DCT(GaussianDeformation):
    r"""A smooth flow of low frequencies, whose cosine coefficients are each N(0, sigma^2):
    certificates in l2.

    The pixel in row n and column m of an image (H, W) moves, along x, by

    .. math::
        \sum_{i, j < \mathrm{bases}} c_{ij}
        \cos\frac{\pi i (2 n + 1)}{2 H} \cos\frac{\pi j (2 m + 1)}{2 W}

    half images, and along y likewise with coefficients of its own. With one basis it is
    :class:`Translation`.

    Args:
        sigma: Standard deviation of each coefficient, in half images.
        bases: Frequencies along each axis, at least 1; there are 2 bases^2 parameters, those of x
            first, row by row.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    bases: int
    unit = "DCT coefficients"

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, bases=count("bases", self.bases, 1))

    @override
    def dim(self, height: int, width: int) -> int:
        if self.bases > min(height, width):
            raise ValueError(
                f"bases must be at most the sides of the image, {height} x {width}, got "
                f"{self.bases}"
            )
        return 2 * self.bases**2

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        def cosines(size: int) -> Tensor:
            frequency = torch.arange(self.bases, dtype=params.dtype, device=params.device)
            place = torch.arange(size, dtype=params.dtype, device=params.device) + 0.5
            return torch.cos(math.pi / size * frequency[:, None] * place)

        coefficients = params.reshape(-1, 2, self.bases, self.bases)
        flow = cosines(height).T @ coefficients @ cosines(width)
        return points(params, height, width)[..., :2] + flow.movedim(1, -1)


@dataclass(frozen=True)
class PixelFlow(GaussianDeformation):
    """A flow of its own for every pixel, each component N(0, sigma^2) half images: certificates in
    l2.

    The parameters are the pixels' (right, down), row by row: 2 H W of them.

    Args:
        sigma: Standard deviation in half images.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    unit = "half images"

    @override
    def dim(self, height: int, width: int) -> int:
        return 2 * height * width

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        return points(params, height, width)[..., :2] + params.reshape(-1, height, width, 2)
