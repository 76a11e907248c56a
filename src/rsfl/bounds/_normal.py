"""The standard normal quantile with a direction: never above, or never below, the exact one."""

import numpy as np
from scipy import special

from rsfl._checks import Float64
from rsfl.bounds._safe import EPS

__all__ = ["quantile_above", "quantile_below"]

_TINY = 1e-300  # below it the tail function itself loses digits
_BEYOND = 40.0  # P(Z > 40) is less than the smallest positive float


def _distance(tail: Float64, *, outward: bool) -> Float64:
    """The a >= 0 with P(Z > a) = tail for tails in [0, 1/2], moved outward or inward until that is
    verified."""
    q = np.maximum(tail, _TINY)
    a = np.asarray(-special.ndtri(q), dtype=np.float64)
    sign = 1.0 if outward else -1.0

    def unverified(a: Float64) -> np.ndarray:
        # Each side is compared where it keeps its digits, and by more than the error of the
        # function: the tail beyond the quartile (its relative error grows like a squared), the mass
        # between 0 and a within it.
        margin = sign * 16 * EPS * (1 + a * a)
        tail_wrong = sign * (special.ndtr(-a) - q * (1 - margin)) > 0
        centre_wrong = sign * (special.erf(a / np.sqrt(2)) / 2 - (0.5 - q) * (1 + margin)) < 0
        wrong = np.where(q < 0.25, tail_wrong, centre_wrong)
        return np.asarray(wrong & (q < 0.5))

    step = 4 * EPS
    while (wrong := unverified(a)).any():
        a = np.where(wrong, a * (1 + sign * step), a)
        step *= 2
    if outward:
        return np.where(tail == 0, np.inf, np.where(tail < _TINY, _BEYOND, a))
    return np.where(tail == 0, np.inf, a)


def quantile_below(p: Float64) -> Float64:
    """A z with P(Z <= z) <= p: the exact quantile at 0, 1/2 and 1, else a few units in the last
    place below it."""
    low = p < 0.5
    tail = np.where(low, p, 1 - p)  # exact: 1 - p has no rounding for p in [1/2, 1]
    if not low.any():  # as for every label that is certified
        return _distance(tail, outward=False)
    return np.where(low, -_distance(tail, outward=True), _distance(tail, outward=False))


def quantile_above(p: Float64) -> Float64:
    """A z with P(Z <= z) >= p: the exact quantile at 0, 1/2 and 1, else a few units in the last
    place above it."""
    low = p < 0.5
    tail = np.where(low, p, 1 - p)
    return np.where(low, -_distance(tail, outward=False), _distance(tail, outward=True))
