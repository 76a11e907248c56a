"""Families whose pictures a warp makes: turned, scaled, shifted."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import choice, stored
from rsfl.deform import Affine, Deformation, Rotation, Scaling, Translation
from rsfl.orbit.deviation import Motion
from rsfl.orbit.family import Range, WarpOrbit, interval

__all__ = ["RotationScalings", "Rotations", "Scalings", "Translations"]


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
        stored(self, angle=interval("angle", self.angle, -math.pi, math.pi))
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
        stored(self, change=interval("change", self.change, -1, open_low=True))
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
        stored(self, right=interval("right", self.right), down=interval("down", self.down))
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
            angle=interval("angle", self.angle, -math.pi, math.pi),
            change=interval("change", self.change, -1, open_low=True),
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


def _turned(
    angle: Tensor, half: Tensor, x: Tensor, y: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, y) turned by all angles within ``half`` of one: by Taylor, the first derivative there and
    a second one that is nowhere larger than the distance from the centre."""
    cos, sin = angle.cos(), angle.sin()
    right, down = cos * x - sin * y, sin * x + cos * y
    bend = (x.square() + y.square()).sqrt() * (half.square() / 2)
    return (right, down.abs() * half + bend), (down, right.abs() * half + bend)
