"""Families of pictures: what they are, and how their points move."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import choice, numbers, stored
from rsfl.deform import Affine, Deformation, Rotation, Scaling, Translation
from rsfl.orbit.deviation import CHUNK, ROUNDING, Lattice, Motion, deviations, places

__all__ = [
    "Exposures",
    "Orbit",
    "RotationScalings",
    "Rotations",
    "Scalings",
    "Translations",
    "WarpOrbit",
    "from_document",
    "to_document",
]

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


def _interval(
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


def _turned(
    angle: Tensor, half: Tensor, x: Tensor, y: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, y) turned by all angles within ``half`` of one: by Taylor, the first derivative there and
    a second one that is nowhere larger than the distance from the centre."""
    cos, sin = angle.cos(), angle.sin()
    right, down = cos * x - sin * y, sin * x + cos * y
    bend = (x.square() + y.square()).sqrt() * (half.square() / 2)
    return (right, down.abs() * half + bend), (down, right.abs() * half + bend)


@dataclass(frozen=True)
class Rotations(WarpOrbit):
    """The image turned about its centre by every angle of an interval, in radians.

    Pictures are those of :class:`rsfl.deform.Rotation`.

    Args:
        angle: The largest angle, in both directions, or the interval (low, high); at most pi.
        padding: ``zeros``, ``border`` or ``reflection``.

    Example:
        >>> Rotations(math.radians(50)).box
        ((-0.872..., 0.872...),)
    """

    angle: Range
    padding: str = field(default="zeros", kw_only=True)
    parameters = ("angle in radians",)

    def __post_init__(self) -> None:
        stored(self, angle=_interval("angle", self.angle, -math.pi, math.pi))
        choice("padding", self.padding, ("zeros", "border", "reflection"))

    @property
    @override
    def box(self) -> tuple[tuple[float, float], ...]:
        return (self.angle,)  # type: ignore[return-value]  # an interval since it was checked

    @property
    @override
    def warp(self) -> Deformation:
        return Rotation(math.pi, padding=self.padding)

    @override
    def motion(self, middle: Tensor, half: Tensor, x: Tensor, y: Tensor) -> Motion:
        (right, dx), (down, dy) = _turned(middle[0], half[0], x, y)
        return Motion((right, dx), (down, dy), (((-down, dy), (right, dx)),))


@dataclass(frozen=True)
class Scalings(WarpOrbit):
    """The image under every change of scale of an interval: coordinates times 1 + s, so that
    positive s shrinks.

    Pictures are those of :class:`rsfl.deform.Scaling`.

    Args:
        change: The largest s, in both directions, or the interval (low, high); above -1.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    change: Range
    padding: str = field(default="zeros", kw_only=True)
    parameters = ("change of scale",)

    def __post_init__(self) -> None:
        stored(self, change=_interval("change", self.change, -1, open_low=True))
        choice("padding", self.padding, ("zeros", "border", "reflection"))

    @property
    @override
    def box(self) -> tuple[tuple[float, float], ...]:
        return (self.change,)  # type: ignore[return-value]  # as above

    @property
    @override
    def warp(self) -> Deformation:
        return Scaling(0.5, padding=self.padding)

    @override
    def motion(self, middle: Tensor, half: Tensor, x: Tensor, y: Tensor) -> Motion:
        scale, still = 1 + middle[0], torch.zeros_like(middle[0])
        return Motion(
            (scale * x, half[0] * x.abs()),
            (scale * y, half[0] * y.abs()),
            (((x + still, still), (y + still, still)),),
        )


@dataclass(frozen=True)
class Translations(WarpOrbit):
    """The image under every shift of a rectangle, in half images, as of
    :class:`rsfl.deform.Translation`.

    Args:
        right: The largest shift to the right of the points that are read, in both directions, or
            the interval (low, high).
        down: The same downward.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    right: Range
    down: Range
    padding: str = field(default="zeros", kw_only=True)
    parameters = ("right in half images", "down in half images")

    def __post_init__(self) -> None:
        stored(self, right=_interval("right", self.right), down=_interval("down", self.down))
        choice("padding", self.padding, ("zeros", "border", "reflection"))

    @property
    @override
    def box(self) -> tuple[tuple[float, float], ...]:
        return (self.right, self.down)  # type: ignore[return-value]  # as above

    @property
    @override
    def warp(self) -> Deformation:
        return Translation(1.0, padding=self.padding)

    @override
    def motion(self, middle: Tensor, half: Tensor, x: Tensor, y: Tensor) -> Motion:
        sides = x[..., -1:], y[:, -1:]  # a half image in pixels
        zero = torch.zeros_like(middle[0])
        (right, dx), (down, dy) = (
            (place + shift * side, by * side)
            for place, shift, by, side in zip((x, y), middle, half, sides, strict=True)
        )
        rates = (
            ((sides[0] + zero, zero), (zero, zero)),
            ((zero, zero), (sides[1] + zero, zero)),
        )
        return Motion((right, dx), (down, dy), rates)


@dataclass(frozen=True)
class RotationScalings(WarpOrbit):
    """The image turned and scaled at once, in one interpolation: coordinates turned by the angle
    and multiplied by 1 + s.

    Args:
        angle: As of :class:`Rotations`.
        change: As of :class:`Scalings`.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    angle: Range
    change: Range
    padding: str = field(default="zeros", kw_only=True)
    parameters = ("angle in radians", "change of scale")

    def __post_init__(self) -> None:
        stored(
            self,
            angle=_interval("angle", self.angle, -math.pi, math.pi),
            change=_interval("change", self.change, -1, open_low=True),
        )
        choice("padding", self.padding, ("zeros", "border", "reflection"))

    @property
    @override
    def box(self) -> tuple[tuple[float, float], ...]:
        return (self.angle, self.change)  # type: ignore[return-value]  # as above

    @property
    @override
    def warp(self) -> Deformation:
        return Affine(1.0, padding=self.padding)

    @override
    def coefficients(self, params: Tensor, height: int, width: int) -> Tensor:
        angle, scale = params[:, 0], 1 + params[:, 1]
        cos, sin, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(angle)
        aspect = (height - 1) / (width - 1)
        return torch.stack([cos - 1, -sin * aspect, zero, sin / aspect, cos - 1, zero], dim=1)

    @override
    def motion(self, middle: Tensor, half: Tensor, x: Tensor, y: Tensor) -> Motion:
        turned = _turned(middle[0], half[0], x, y)
        scale, by = 1 + middle[1], half[1]
        (right, dx), (down, dy) = (
            (scale * at, scale * reach + by * (at.abs() + reach)) for at, reach in turned
        )
        return Motion((right, dx), (down, dy), (((-down, dy), (right, dx)), turned))


@dataclass(frozen=True)
class Exposures(Orbit):
    """The image under every change of contrast and brightness: (1 + c) x + b, clamped to [0, 1].

    Before clamping the pictures lie on a plane, and mixtures of corners are exact.

    Args:
        contrast: The largest c, in both directions, or the interval (low, high).
        brightness: The largest b, in both directions, or the interval (low, high).
        clamp: Whether values are kept in [0, 1].
    """

    contrast: Range
    brightness: Range
    clamp: bool = field(default=True, kw_only=True)
    parameters = ("change of contrast", "brightness")

    def __post_init__(self) -> None:
        stored(
            self,
            contrast=_interval("contrast", self.contrast),
            brightness=_interval("brightness", self.brightness),
        )

    @property
    @override
    def box(self) -> tuple[tuple[float, float], ...]:
        return (self.contrast, self.brightness)  # type: ignore[return-value]  # as above

    def _plane(self, x: Tensor, params: Tensor) -> Tensor:
        contrast, brightness = params[:, :, None, None, None].unbind(1)
        return (1 + contrast) * x.double() + brightness

    @override
    def pictures(self, x: Tensor, params: Tensor) -> Tensor:
        self.check(x)
        plane = self._plane(x, params)
        return plane.clamp(0, 1) if self.clamp else plane

    @override
    def largest(self, x: Tensor) -> float:
        contrast, brightness = (max(abs(low), abs(high)) for low, high in self.box)
        return ((1 + contrast) * float(x.abs().max()) + brightness) * (1 + 2.0**-40)

    @override
    def rounding(self, x: Tensor) -> float:
        return math.sqrt(x[0].numel()) * (1 + self.largest(x)) * ROUNDING

    @override
    def speeds(self, x: Tensor) -> tuple[float, ...]:
        return (0.0, 0.0)  # no point moves

    @override
    def resolution(self, x: Tensor, pixels: float = 1 / 16) -> tuple[int, ...]:
        """Sixteen cells along each parameter: a cell's width costs nothing but in saturated
        pixels."""
        return (16, 16) if pixels < 1 / 2 else (1, 1)

    @override
    def deviation(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if not self.clamp:
            return torch.full((len(low),), self.rounding(x), dtype=torch.float64, device=x.device)
        found = []
        size = max(1, CHUNK // x[0].numel())
        slack = (1 + self.largest(x)) * ROUNDING
        for first, last in zip(torch.split(low, size), torch.split(high, size), strict=True):
            ends = [
                self._plane(x, torch.stack([contrast, brightness], dim=1))
                for contrast, brightness in product(
                    *zip(first.unbind(1), last.unbind(1), strict=True)
                )
            ]
            least, most = torch.stack(ends).aminmax(dim=0)
            # Only a pixel that begins to saturate within the cell bends, from its rate to none.
            bent = ((least < slack) & (most > -slack)) | ((least < 1 + slack) & (most > 1 - slack))
            widths = (last - first)[:, :, None, None, None] * (1 + 2.0**-50)
            rate = widths[:, 0] * x.double().abs() + widths[:, 1]
            found.append((rate / 4 * bent).flatten(1).norm(dim=1))
        return torch.cat(found) * (1 + 2.0**-40) + self.rounding(x)


_FAMILIES: dict[str, type[Orbit]] = {
    family.__name__: family
    for family in (Exposures, RotationScalings, Rotations, Scalings, Translations)
}


def to_document(orbit: Orbit) -> dict[str, Any]:
    """A family of this module by its name and settings, as JSON takes them.

    Raises:
        TypeError: It is of another kind.
    """
    if type(orbit) not in _FAMILIES.values():
        raise TypeError(f"orbit must be one of {', '.join(_FAMILIES)}, got {orbit!r}")
    return {"name": type(orbit).__name__, **asdict(orbit)}  # type: ignore[call-overload]  # all are dataclasses


def from_document(document: Mapping[str, Any]) -> Orbit:
    """The family that :func:`to_document` described.

    Raises:
        ValueError: No family has that name.
        TypeError: Its settings are others.
    """
    values = dict(document)
    name = values.pop("name", None)
    if name not in _FAMILIES:
        raise ValueError(f"orbit must be one of {', '.join(_FAMILIES)}, got {name!r}")
    return _FAMILIES[name](**values)
