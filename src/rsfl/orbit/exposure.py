"""The family of an image under other contrast and brightness."""

import math
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import stored
from rsfl.orbit.deviation import CHUNK, ROUNDING
from rsfl.orbit.family import Orbit, Range, interval

__all__ = ["Exposures"]


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
            contrast=interval("contrast", self.contrast),
            brightness=interval("brightness", self.brightness),
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
