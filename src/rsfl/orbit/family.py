"""What a family of pictures is, and what all of those have in common that a warp makes."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import numbers
from rsfl.deform import Deformation, Rotation
from rsfl.orbit.deviation import CHUNK, ROUNDING, Lattice, Motion, deviations, places

__all__ = ["Orbit", "Range", "WarpOrbit", "interval"]

Range = float | tuple[float, float]
"""An interval, or a number r for [-r, r]."""


class Orbit(ABC):
    """The pictures T(x, t) of an image, for all t in a box.

    Subclasses say how a picture is made and how far the pictures of a cell are from mixtures of
    those at its corners.
    """

    parameters: ClassVar[tuple[str, ...]]
    """What the parameters are, with their units."""

    @property
    @abstractmethod
    def box(self) -> tuple[tuple[float, float], ...]:
        """The interval of each parameter."""

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return len(self.box)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """The pictures T(x, t), in the dtype of x.

        Args:
            x: Images (N, C, H, W), or one image (1, C, H, W) for all parameters.
            params: Parameters (N, dim), or (1, dim) for all images; computed with in float64.
        """
        return self.pictures(x, params.double()).to(x.dtype)

    @abstractmethod
    def pictures(self, x: Tensor, params: Tensor) -> Tensor:
        """The pictures in float64."""

    @abstractmethod
    def deviation(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        r"""A bound on how far the pictures of each cell are from a mixture of its corners'.

        Each picture T(x, t) with t in the cell lies within this l2 distance of a convex combination
        of the cell's corner pictures, all on real numbers; rounded up.

        Args:
            x: One image (1, C, H, W).
            low: (N, dim) float64, the least parameters of each cell.
            high: (N, dim) float64, the largest.

        Returns:
            (N,) float64 distances, in the units of x.
        """

    def largest(self, x: Tensor) -> float:
        """No value of a picture is larger, in absolute value."""
        return float(x.abs().max())

    @abstractmethod
    def rounding(self, x: Tensor) -> float:
        """How far a picture computed in float64 can be from the one on real numbers, in l2."""

    def resolution(self, x: Tensor, pixels: float = 1 / 16) -> tuple[int, ...]:
        """Cells along each parameter within which no point that is read moves by more than a share
        of a pixel."""
        return tuple(
            max(1, math.ceil((high - low) * speed / pixels))
            for (low, high), speed in zip(self.box, self.speeds(x), strict=True)
        )

    @abstractmethod
    def speeds(self, x: Tensor) -> tuple[float, ...]:
        """For each parameter, how many pixels a point moves for one unit of it, at most."""

    def check(self, x: Tensor) -> None:
        """Raise an error if x is no batch of images."""
        Rotation(1.0).check(x)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Parameters (n, dim), uniform on the box, float32: augmentation for training."""
        low, high = self._ends(device)
        draws = torch.rand(n, self.dim, generator=generator, device=device)
        return low.float() + draws * (high - low).float()

    def _ends(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        low, high = torch.tensor(self.box, dtype=torch.float64, device=device).unbind(1)
        return low, high


def interval(
    name: str, value: Range, low: float = -np.inf, high: float = np.inf, *, open_low: bool = False
) -> tuple[float, float]:
    """An interval from two numbers, or from one for both directions."""
    ends = numbers(name, value, low, high, open_low=open_low, open_high=np.isinf(high))
    if ends.ndim == 0:
        if not ends > 0:
            raise ValueError(f"{name} must be positive, or a pair (low, high), got {value!r}")
        ends = np.array([max(-float(ends), low), float(ends)])
    if ends.shape != (2,) or not ends[0] < ends[1]:
        raise ValueError(f"{name} must be one number or a pair (low, high), got {value!r}")
    return float(ends[0]), float(ends[1])


class WarpOrbit(Orbit):
    """The pictures of a warp: pixels that read the image at points which move with the parameters.

    Subclasses name the warp of :mod:`rsfl.deform`, and enclose how its points move over a cell of
    parameters; all else follows.
    """

    padding: str

    @property
    @abstractmethod
    def warp(self) -> Deformation:
        """What deforms the image."""

    def coefficients(self, params: Tensor, height: int, width: int) -> Tensor:
        """The warp's parameters for those of the orbit."""
        return params

    @abstractmethod
    def motion(self, middle: Tensor, half: Tensor, x: Tensor, y: Tensor) -> Motion:
        """Enclose the points that pixels read, for parameters within ``half`` of ``middle``.

        Args:
            middle: (dim, cells, 1, 1) float64, the middles of the cells.
            half: (dim, cells, 1, 1) half of their widths, rounded up.
            x: (1, 1, W) the pixels' places, to the right of the centre.
            y: (1, H, 1) their places, down from the centre.
        """

    @override
    def pictures(self, x: Tensor, params: Tensor) -> Tensor:
        self.check(x)
        return self.warp(x.double(), self.coefficients(params, *x.shape[2:]))

    @override
    def check(self, x: Tensor) -> None:
        self.warp.check(x)

    def _reach(self, x: Tensor) -> float:
        """No point that is read is farther from the centre than this, in pixels along one axis."""
        low, high = self._ends(x.device)
        pixels = places(x)
        middle, half = ((low + high) / 2)[:, None, None, None], (high - low)[:, None, None, None]
        found = self.motion(middle, half / 2 * (1 + 2.0**-50), *pixels)
        return max(float((at.abs() + by).max()) for at, by in (found.x, found.y)) + 1

    @override
    def rounding(self, x: Tensor) -> float:
        # a coordinate off by d changes a value by up to twice 2 d max|x|
        size = sum(x.shape[2:]) + self._reach(x)
        return math.sqrt(x[0].numel()) * float(x.abs().max()) * ROUNDING * (4 * size + 8)

    @override
    def speeds(self, x: Tensor) -> tuple[float, ...]:
        low, high = self._ends(x.device)
        middle, half = ((low + high) / 2)[:, None, None, None], (high - low)[:, None, None, None]
        found = self.motion(middle, half / 2, *places(x))
        return tuple(max(float((at.abs() + by).max()) for at, by in pair) for pair in found.rates)

    @override
    def deviation(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        lattice = Lattice.of(x, self.padding, self._reach(x))
        pixels = places(x)
        size = max(1, CHUNK // (x.shape[2] * x.shape[3]))
        widths = (high - low) * (1 + 2.0**-52)
        half = widths / 2 * (1 + 2.0**-50) + (low.abs() + high.abs()) * 2.0**-53
        parts = zip(
            _columns((low + high) / 2, size),
            _columns(half, size),
            _columns(widths, size),
            strict=True,
        )
        found = [
            deviations(lattice, self.motion(middle, by, *pixels), width)
            for middle, by, width in parts
        ]
        moved = sum(
            2 * speed * float(width)
            for speed, width in zip(self.speeds(x), widths.amax(0), strict=True)
        )
        largest = math.sqrt(x[0].numel()) * float(x.abs().max())
        slack = largest * ROUNDING * (8 + lattice.size * moved)
        return torch.cat(found) * (1 + 2.0**-40) + slack


def _columns(values: Tensor, size: int) -> list[Tensor]:
    """(N, dim) in parts of (dim, size, 1, 1)."""
    return [part.T[:, :, None, None] for part in torch.split(values, size)]
