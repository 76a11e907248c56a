"""Trade-off curves: how improbable a likely event may become when the noise is shifted."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rsfl._checks import Float64, Floats, number, numbers, probabilities, unwrapped
from rsfl.bounds._normal import quantile_below
from rsfl.bounds._safe import EPS, up

__all__ = ["gaussian_tradeoff", "laplace_tradeoff", "uniform_tradeoff"]


def gaussian_tradeoff(p: ArrayLike, radius: ArrayLike, *, sigma: float) -> Floats:
    r"""The least probability, under Gaussian noise about a shifted mean, of an event that has
    probability p:

    .. math:: T(p) = \Phi(\Phi^{-1}(p) - r / \sigma) .

    It is convex and rises in p, and is attained by half-spaces.

    Assumes:
        The event depends on the noisy point alone; the shift is at most ``radius`` in l2.

    Args:
        p: Probabilities without the shift, in [0, 1].
        radius: Largest shift, at least 0.
        sigma: Standard deviation of each coordinate, positive.

    Returns:
        T(p), never above the exact value.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> 0.7600 < gaussian_tradeoff(0.9, 0.1437, sigma=0.25) < 0.7603
        True
    """
    p, r = np.broadcast_arrays(probabilities("p", p), numbers("radius", radius, 0, np.inf))
    sigma = number("sigma", sigma, 0, np.inf, open_low=True, open_high=True)
    inside = (p > 0) & (p < 1) & np.isfinite(r)
    shift = np.where(inside, r, 0.0) / sigma * up(4)
    z = np.asarray(quantile_below(np.where(inside, p, 0.5)) - shift)
    z = z - 4 * EPS * (np.abs(z) + shift)
    margin = 64 * EPS * (1 + z * z)  # the tail's own error, and that of its argument
    below = special.ndtr(np.minimum(z, 0.0)) * (1 - np.minimum(margin, 1.0))
    above = 1 - special.ndtr(-np.maximum(z, 0.0)) * (1 + margin)
    value = np.where(z < 0, below, above - EPS)
    edges = np.where((p == 1) & np.isfinite(r), 1.0, 0.0)
    return unwrapped(np.where(r == 0, p, np.where(inside, np.maximum(value, 0.0), edges)))


def uniform_tradeoff(p: ArrayLike, radius: ArrayLike, *, half_width: float) -> Floats:
    r"""The same for noise that is uniform on a cube, and shifts in l1:

    .. math:: T(p) = \max(p - r / (2 \lambda), 0) .

    Two cubes, one of them shifted by d, share at least :math:`1 - \|d\|_1 / (2 \lambda)` of their
    volume; an event loses no more than the rest.

    Assumes:
        The event depends on the noisy point alone; the shift is at most ``radius`` in l1.

    Args:
        p: Probabilities without the shift, in [0, 1].
        radius: Largest shift, at least 0.
        half_width: Half the side of the cube, positive.

    Returns:
        T(p), never above the exact value.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> 0.6499 < uniform_tradeoff(0.9, 0.5, half_width=1.0) <= 0.65
        True
    """
    p, r = np.broadcast_arrays(probabilities("p", p), numbers("radius", radius, 0, np.inf))
    width = number("half_width", half_width, 0, np.inf, open_low=True, open_high=True)
    lost = r / 2 / width
    value = np.where(r == 0, p, p - lost * up(4) - EPS)
    return unwrapped(np.maximum(value, 0.0))


def laplace_tradeoff(p: ArrayLike, radius: ArrayLike, *, scale: float) -> Floats:
    r"""The same for Laplace noise, and shifts in l1:

    .. math:: T(p) = \max(p\, e^{-r/b},\; 1 - (1 - p)\, e^{r/b},\; 0) .

    A shift changes the density by a factor between :math:`e^{-r/b}` and :math:`e^{r/b}`, that of
    the event and that of its complement.

    Assumes:
        The event depends on the noisy point alone; the shift is at most ``radius`` in l1.

    Args:
        p: Probabilities without the shift, in [0, 1].
        radius: Largest shift, at least 0.
        scale: Scale b of each coordinate, positive.

    Returns:
        T(p), never above the exact value.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> 0.8350 < laplace_tradeoff(0.9, 0.25, scale=0.5) < 0.8352
        True
    """
    p, r = np.broadcast_arrays(probabilities("p", p), numbers("radius", radius, 0, np.inf))
    scale = number("scale", scale, 0, np.inf, open_low=True, open_high=True)
    log_factor = r / scale * up(2)
    with np.errstate(over="ignore", invalid="ignore"):
        margin = 8 * EPS * (1 + log_factor)
        share = p * np.exp(-log_factor) * (1 - margin)
        rest = (1 - p) * np.exp(log_factor) * (1 + margin)
        kept = 1 - np.where(p == 1, 0.0, rest) - EPS
    value = _largest(share, kept)
    return unwrapped(np.where(r == 0, p, np.where(np.isinf(r), 0.0, value)))


def _largest(*values: Float64) -> Float64:
    """The largest of these and of 0; what is no number does not count."""
    return np.asarray(np.fmax.reduce([*values, np.zeros_like(values[0])]))
