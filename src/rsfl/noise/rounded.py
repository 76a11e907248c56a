"""Gaussian noise in whole numbers, drawn from an exact table: floating point cannot break it."""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor
from typing_extensions import override

from rsfl import bounds
from rsfl._checks import Float64, Floats, count, number, probabilities, stored, unwrapped
from rsfl.assumptions import (
    GRID_INPUT,
    RAW_INPUT,
    ROUNDED_TABLE,
)
from rsfl.noise.law import Law

__all__ = ["RoundedGaussian"]

_BITS = 62
_GUARD = 128  # fixed-point bits of the table's construction; its terms number a few hundred
# of 2 y^2: from here on P[|N| >= a] <= e^(-y^2) < 2^-63 rounds to 0, and the terms would be many
_BEYOND = 88


@lru_cache(maxsize=32)
def _magnitude_table(sigma: float, levels: int) -> tuple[int, ...]:
    """round(2^62 P[|N| >= m - 1/2]) for m = 1, 2, ... until it is 0, where N is Gaussian in steps
    of the grid.

    P[|N| < a] = erf(y) with y = a / (sqrt 2 s), from erf(y) = 2 y / sqrt(pi) e^(-y^2) sum_k (2
    y^2)^k / (2k+1)!!, whose terms are all positive: no cancellation, and each entry is right to its
    last bit or the next.
    """
    step = Fraction(sigma) * (levels - 1)
    one = 1 << _GUARD
    table: list[int] = []
    with localcontext() as context:
        context.prec = 60
        root = 2 / _pi().sqrt()
        m = 1
        while True:
            twice_square = (Fraction(2 * m - 1, 2) / step) ** 2  # 2 y^2
            if twice_square > 100:  # beyond ten deviations less than 2^-75 is left
                return tuple(table)
            ratio = twice_square.numerator * one // twice_square.denominator
            if twice_square > _BEYOND:
                return tuple(table)
            total, term, k = 0, one, 0
            while term:
                total += term
                k += 1
                term = (term * ratio // (2 * k + 1)) >> _GUARD
            square = Decimal(twice_square.numerator) / Decimal(twice_square.denominator) / 2
            inside = root * square.sqrt() * (-square).exp() * (Decimal(total) / Decimal(one))
            entry = int(((1 - inside) * (1 << _BITS)).to_integral_value())
            if entry <= 0:
                return tuple(table)
            table.append(entry)
            m += 1


@lru_cache(maxsize=32)
def _ascending_table(sigma: float, levels: int, device: str) -> Tensor:
    return torch.tensor(_magnitude_table(sigma, levels)[::-1], dtype=torch.int64, device=device)


def _pi() -> Decimal:
    """pi to the precision of the decimal context, by Machin's formula."""

    def arctan_inverse(n: int) -> Decimal:
        total, power, k, term = Decimal(0), Decimal(1) / n, 1, Decimal(1)
        while abs(term) > Decimal(10) ** -70:
            term = power / k
            total += term
            power, k = -power / (n * n), k + 2
        return total

    return 16 * arctan_inverse(5) - 4 * arctan_inverse(239)


@dataclass(frozen=True)
class RoundedGaussian(Law):
    """Gaussian noise rounded to the grid of 8-bit images: l2 certificates that floating point
    cannot break.

    For inputs whose coordinates are k / (levels - 1), rounding ``input + N(0, sigma^2)`` to the
    grid is a fixed function of the noisy input, so the Gaussian certificate applies; and because
    the input is on the grid it equals the input plus *rounded noise*, which is drawn here as an
    integer from an exact table with 63 random bits. The sum is clamped to a wide range and
    converted to float once. What the table still differs from the exact law, in total variation and
    times the number of coordinates, is taken off the certificate at both ends. The guarantee is for
    every perturbed input on the grid.

    Args:
        sigma: Standard deviation in input units, positive.
        levels: Number of grid points in [0, 1], from 2 to 65,536; 256 for 8-bit images. Sums of
            pixel and noise have to be whole numbers that float32 holds: sigma (levels - 1) may be
            at most 1.6e6.
    """

    sigma: float
    levels: int = 256
    norm = "l2"
    assumptions = (RAW_INPUT, GRID_INPUT, ROUNDED_TABLE)

    def __post_init__(self) -> None:
        stored(self, sigma=number("sigma", self.sigma, 0, np.inf, open_low=True, open_high=True))
        stored(self, levels=count("levels", self.levels, 2))
        if self.levels > 2**16:
            raise ValueError(
                f"levels must be at most 65536, for which float32 tells the grid points of an "
                f"image apart, got {self.levels}"
            )
        if 10 * self.sigma * (self.levels - 1) + self.levels > 2**24:
            raise ValueError(
                f"sigma must be at most {(2**24 - self.levels) / (10 * (self.levels - 1)):.6g} for "
                f"{self.levels} levels, where sums of pixel and noise are exact, got {self.sigma}"
            )

    @property
    def clamp(self) -> int:
        """The sum of pixel and noise is clamped to [levels - 1 - clamp, clamp], in grid steps."""
        return self.levels - 1 + math.ceil(8 * self.sigma * (self.levels - 1))

    @property
    def total_variation(self) -> float:
        """A bound on the distance of one coordinate's drawn law to the exact rounded Gaussian."""
        # Each table entry is right to one unit of 2^-62, the mass beyond the table is below one,
        # and every entry moves mass between two neighbours.
        return (len(_magnitude_table(self.sigma, self.levels)) + 2) * 2.0**-_BITS

    @override
    def check(self, x: Tensor) -> None:
        steps = x.double() * (self.levels - 1)
        # It is the grid point that is certified; x may differ by two roundings of float32, as in
        # pixel * (1 / 255).
        slack = (self.levels - 1) * 2.0**-23
        off = (steps - steps.round()).abs() > slack
        off |= (steps < -slack) | (steps > self.levels - 1 + slack)
        if bool(off.any()):
            raise ValueError(
                f"x must lie on the grid k / {self.levels - 1} in [0, 1] for RoundedGaussian, "
                f"got {x[off][0].item()!r} at index {tuple(off.nonzero()[0].tolist())}"
            )

    @override
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Whole grid steps, as float32."""
        table = _ascending_table(self.sigma, self.levels, str(device or "cpu"))
        bits = torch.randint(
            -(1 << _BITS), 1 << _BITS, shape, generator=generator, device=device, dtype=torch.int64
        )
        sign = bits >> 63  # 0 or -1; a negative number's complement is uniform on [0, 2^62) again
        magnitude = len(table) - torch.searchsorted(table, bits ^ sign, right=True)
        return ((magnitude ^ sign) - sign).to(torch.float32)

    @override
    def perturb(self, x: Tensor, noise: Tensor) -> Tensor:
        top = self.levels - 1
        grid = ((x.detach().float() * top).round() + noise).clamp(
            top - self.clamp, self.clamp
        ) / top
        noisy = grid.to(x.dtype)
        return (
            x + (noisy - x).detach() if x.requires_grad else noisy
        )  # gradients pass as through plain addition

    def _paid(self, dim: int | None) -> float:
        """What the table differs from the exact law over one input. No number of coordinates is a
        default here: with fewer than there are, a radius would be above the exact one."""
        if dim is None:
            raise ValueError(
                f"dim must be the number of coordinates of one input for {self}, which pays for "
                f"each, got {dim!r}: dim=x[0].numel()"
            )
        return self.total_variation * count("dim", dim, 1)

    @override
    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int | None = None) -> Floats:
        # The drawn law is within `paid` of the exact one before the shift and after it.
        paid = self._paid(dim)
        before = np.maximum(probabilities("p", p) - paid, 0.0)
        exact = bounds.gaussian_tradeoff(before, radius, sigma=self.sigma)
        return unwrapped(np.maximum(np.asarray(exact) - paid, 0.0))

    @override
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> Floats:
        # The drawn law is within `paid` of the exact one at the input and at the perturbed input
        # alike. Split at a level c: the label stays above c + paid within the first distance, every
        # other class below c - paid within the second, whatever c is. With one bound, c = 1/2 and
        # the two are the same. A gap of p over q is that of 1 - q over 1 - p, which keeps the
        # digits of probabilities close to 1.
        paid = np.nextafter(self._paid(dim), np.inf)
        a = probabilities("p_a", p_a)
        if p_b is None:
            half = _lowered(np.asarray(0.5), paid)
            return bounds.cohen_radius(half, _raised(1 - a, paid), sigma=2 * self.sigma)
        a, b = np.broadcast_arrays(a, probabilities("p_b", p_b))
        high = b >= 0.5
        a, b = np.where(high, 1 - b, a), np.where(high, 1 - a, b)
        a, b = _lowered(a, paid), _raised(b, paid)
        lost = a <= b
        a_, b_ = np.where(lost, 0.75, a), np.where(lost, 0.25, b)
        c = _middle(a_, b_)
        first = bounds.cohen_radius(a_, _raised(c, paid), sigma=2 * self.sigma)
        second = bounds.cohen_radius(_lowered(c, paid), b_, sigma=2 * self.sigma)
        return unwrapped(np.where(lost, 0.0, np.minimum(first, second)))


def _lowered(p: Float64, paid: float) -> Float64:
    """p - paid, rounded down; no probability is below 0."""
    return np.maximum(np.nextafter(p - paid, -1), 0.0)


def _raised(p: Float64, paid: float) -> Float64:
    """p + paid, rounded up; no probability is above 1."""
    return np.minimum(np.nextafter(p + paid, 2), 1.0)


def _middle(a: Float64, b: Float64) -> Float64:
    """The probability half way between two, in quantiles."""
    with np.errstate(invalid="ignore"):
        z = (special.ndtri(a) + special.ndtri(b)) / 2
    return np.asarray(special.ndtr(np.where(np.isfinite(z), z, 0.0)))
