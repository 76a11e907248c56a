"""Radii within which a smoothed classifier keeps its label, from bounds on its two leading
probabilities."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rsfl._checks import Float64, Floats, counts, numbers
from rsfl.bounds._normal import quantile_above, quantile_below
from rsfl.bounds._safe import EPS, SMALLEST, finished, pair

__all__ = [
    "cohen_radius",
    "laplace_radius",
    "lecuyer_radius",
    "li_radius",
    "linf_radius",
    "uniform_radius",
]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
# in quantiles: below it their difference would lose digits, and quadrature needs few nodes
_NARROW = 0.02
_FAINT = 1e-200  # probabilities below which Li's formula, a small difference of them, has no digits
_TINY = 1e-300  # probabilities below which two close ones are told apart by too few digits


def _quantile_gap(a: Float64, b: Float64) -> Float64:
    """ppf(a) - ppf(b) for a > b, never above the exact gap.

    Where the quantiles are close their difference cancels, so the gap is integrated instead: it is
    the integral of 1 / pdf(ppf(p)) over [b, a]. Every even derivative of that integrand is
    positive, so Gauss-Legendre errs downward. Beyond 1/2 the integral is taken over 1 - p, which
    keeps the digits of the tail.
    """
    wide = quantile_below(a) - quantile_above(b)
    upper = b >= 0.5
    low, high = np.where(upper, 1 - a, b), np.where(upper, 1 - b, a)
    half = (high - low) / 2
    nodes = low[..., None] + half[..., None] * (1 + _NODES)
    z = special.ndtri(nodes)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    with np.errstate(
        divide="ignore", invalid="ignore", over="ignore"
    ):  # only close quantiles are read below
        narrow = half * np.sum(_WEIGHTS / density, axis=-1) * (1 - 2e-11)
    # Among smaller numbers floats are too coarse for a difference; no gap is certified there.
    held = np.isfinite(narrow) & (low >= _TINY)
    return np.where(wide > _NARROW, wide, np.where(held, narrow, 0.0))


def cohen_radius(p_a: ArrayLike, p_b: ArrayLike | None = None, *, sigma: ArrayLike) -> Floats:
    r"""Certified l2 radius under Gaussian noise (Cohen et al.).

    :math:`\tfrac{\sigma}{2} (\Phi^{-1}(p_A) - \Phi^{-1}(p_B))`, which is
    :math:`\sigma \Phi^{-1}(p_A)` for :math:`p_B = 1 - p_A`.

    Assumes:
        The classifier is the majority vote under noise :math:`N(0, \sigma^2 I)`; p_a bounds the
        probability of its label from below and p_b that of every other class from above. The
        guarantee holds in the open ball.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        sigma: Standard deviation of the noise, positive.

    Returns:
        A radius never above the exact one: 0 where p_a <= p_b, inf only where p_a is exactly 1 or
        p_b exactly 0.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> cohen_radius(0.9, sigma=0.5)
        0.6407...
        >>> cohen_radius([0.4, 0.45], [0.6, 0.1], sigma=1.0)
        array([0.        , 0.577...])

    References:
        Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing",
        ICML 2019, Theorem 1.
    """
    s = numbers("sigma", sigma, 0, np.inf, open_low=True, open_high=True)
    a, b, gap, _ = pair(p_a, p_b)
    lost, unbounded = gap <= 0, (a == 1) | (b == 0)
    middle = lost | unbounded  # their radius is settled, so any values stand in for theirs
    a, b = np.where(middle, 0.75, a), np.where(middle, 0.25, b)
    z = quantile_below(a) if p_b is None else _quantile_gap(a, b) / 2
    return finished(np.asarray(s * z), *np.broadcast_arrays(lost, unbounded))


def uniform_radius(
    p_a: ArrayLike, p_b: ArrayLike | None = None, *, half_width: ArrayLike
) -> Floats:
    r"""Certified l1 radius under uniform noise on a cube.

    :math:`\lambda (p_A - p_B)` for noise uniform on :math:`[-\lambda, \lambda]^d`; never infinite.

    Assumes:
        As for :func:`cohen_radius`, with that noise.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        half_width: Half the side of the cube, :math:`\lambda`, positive.

    Returns:
        A radius never above the exact one, 0 where p_a <= p_b.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> uniform_radius(0.9, half_width=1.0)
        0.79999...

    References:
        Lee et al., "Tight certificates of adversarial robustness for randomly smoothed
        classifiers", NeurIPS 2019; Yang et al., "Randomized smoothing of all shapes and sizes",
        ICML 2020.
    """
    width = numbers("half_width", half_width, 0, np.inf, open_low=True, open_high=True)
    _, _, gap, _ = pair(p_a, p_b)
    radius = np.asarray(width * gap)
    return finished(
        radius, np.broadcast_to(gap <= 0, radius.shape), np.zeros(radius.shape, dtype=bool)
    )


def laplace_radius(p_a: ArrayLike, p_b: ArrayLike | None = None, *, scale: ArrayLike) -> Floats:
    r"""Certified l1 radius under Laplace noise.

    :math:`\max\{\tfrac{b}{2} \log(p_A / p_B),\; -b \log(1 - p_A + p_B)\}` for independent Laplace
    noise of scale b in every coordinate.

    Assumes:
        As for :func:`cohen_radius`, with that noise.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        scale: Scale b of the noise, positive.

    Returns:
        A radius never above the exact one: 0 where p_a <= p_b, inf only where p_b is exactly 0 and
        p_a is not.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> laplace_radius(0.9, scale=1.0)
        1.6094...

    References:
        Teng, Lee and Yuan, "l1 adversarial robustness certificates: a randomized smoothing
        approach", 2019.
    """
    b_scale = numbers("scale", scale, 0, np.inf, open_low=True, open_high=True)
    a, b, gap, rest = pair(p_a, p_b)
    lost, unbounded = gap <= 0, b == 0
    settled = lost | unbounded
    a, b, gap, rest = (
        np.where(settled, value, x) for value, x in ((0.75, a), (0.25, b), (0.5, gap), (0.5, rest))
    )
    ratio = _log_ratio(a, b, gap) / 2
    with np.errstate(divide="ignore"):  # in the branch that is not taken
        mass = np.where(gap < 0.5, -np.log1p(-gap), -np.log(rest))
    return finished(
        np.asarray(b_scale * np.maximum(ratio, mass)), *np.broadcast_arrays(lost, unbounded)
    )


def _log_ratio(a: Float64, b: Float64, gap: Float64) -> Float64:
    """log(a / b) for a > b and gap = a - b, to a few units in its last place: a difference of
    logarithms loses more."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio = gap / b
        return np.asarray(np.where(np.isfinite(ratio), np.log1p(ratio), np.log(a) - np.log(b)))


def linf_radius(l2_radius: ArrayLike, dim: ArrayLike) -> Floats:
    r"""The l-infinity radius that an l2 radius contains, :math:`r / \sqrt d`.

    An l2 radius also is an l1 radius as it stands, because the l1 norm is never below the l2 norm.

    Args:
        l2_radius: Certified l2 radius, at least 0 (inf stays inf).
        dim: Number of coordinates d, whole, at least 1.

    Returns:
        A radius never above the exact quotient.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> linf_radius(0.5, dim=3072) * 255
        2.3003...
    """
    r, d = np.broadcast_arrays(numbers("l2_radius", l2_radius, 0), counts("dim", dim, 1))
    return finished(np.asarray(r / np.sqrt(d)), r == 0, np.isinf(r))


def _largest(value: Callable[[Float64], Float64], low: Float64, high: Float64) -> Float64:
    """The largest value met on [low, high], searched on a grid that zooms in on its best point."""
    best = np.zeros_like(low)
    for points in (257, *[33] * 8):
        t = np.linspace(0.0, 1.0, points)
        x = low[..., None] + (high - low)[..., None] * t
        y = value(x)
        y = np.where(np.isfinite(y), y, 0.0)
        i = np.argmax(y, axis=-1)[..., None]
        best = np.maximum(best, np.take_along_axis(y, i, -1)[..., 0])
        left, right = np.maximum(i - 1, 0), np.minimum(i + 1, points - 1)
        low, high = (np.take_along_axis(x, j, -1)[..., 0] for j in (left, right))
    return best


def lecuyer_radius(p_a: ArrayLike, p_b: ArrayLike | None = None, *, sigma: ArrayLike) -> Floats:
    r"""The older l2 radius of Lecuyer et al., by differential privacy; for comparison only.

    .. math::
        \sup_{0 < \beta \le \min(1, \frac12 \log\frac{p_A}{p_B})}
        \frac{\sigma \beta}{\sqrt{2 \log\bigl(1.25 (1 + e^\beta) / (p_A - e^{2\beta} p_B)\bigr)}}

    Assumes:
        As for :func:`cohen_radius`, whose radius is never smaller.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        sigma: Standard deviation of the noise, positive.

    Returns:
        A radius never above the supremum, 0 where p_a <= p_b; never infinite.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> lecuyer_radius(0.99, sigma=1.0)
        0.5548...

    References:
        Lecuyer et al., "Certified robustness to adversarial examples with differential privacy",
        IEEE S&P 2019, in the form of Cohen et al. 2019, appendix A.
    """
    s = numbers("sigma", sigma, 0, np.inf, open_low=True, open_high=True)
    a, b, gap, _ = pair(p_a, p_b)
    lost = gap <= 0
    a_, b_, gap_ = (
        np.where(lost, value, x)[..., None] for value, x in ((0.75, a), (0.25, b), (0.5, gap))
    )
    high = np.minimum(1.0, _log_ratio(a_, b_, gap_) / 2)[..., 0]

    def at(beta: Float64) -> Float64:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # p_A - e^{2 beta} p_B, without cancelling: the part that beta takes off the gap is
            # expm1
            room = gap_ - b_ * np.expm1(2 * beta)
            return np.asarray(
                beta
                / np.sqrt(2 * np.log(1.25 * (1 + np.exp(beta)) / np.where(room > 0, room, np.nan)))
            )

    radius = np.asarray(s * _largest(at, np.zeros_like(high), high) * (1 - 1e-12))
    return finished(radius, np.broadcast_to(lost, radius.shape), np.zeros(radius.shape, dtype=bool))


def li_radius(p_a: ArrayLike, p_b: ArrayLike | None = None, *, sigma: ArrayLike) -> Floats:
    r"""The older l2 radius of Li et al., by Renyi divergence; for comparison only.

    .. math::
        \sup_{\alpha > 1} \sigma \sqrt{-\tfrac{2}{\alpha} \log\Bigl(1 - p_A - p_B
        + 2 \bigl(\tfrac12 (p_A^{1-\alpha} + p_B^{1-\alpha})\bigr)^{\frac{1}{1-\alpha}}\Bigr)}

    Assumes:
        As for :func:`cohen_radius`, whose radius is never smaller.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        sigma: Standard deviation of the noise, positive.

    Returns:
        A radius never above the supremum: 0 where p_a <= p_b or p_a < 1e-200, inf only where p_a
        is exactly 1 and p_b exactly 0.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> li_radius(0.99, sigma=1.0)
        1.9080...

    References:
        Li et al., "Certified adversarial robustness with additive noise", NeurIPS 2019, in the form
        of Cohen et al. 2019, appendix A.
    """
    s = numbers("sigma", sigma, 0, np.inf, open_low=True, open_high=True)
    a, b, gap, _ = pair(p_a, p_b)
    lost, unbounded = (gap <= 0) | (a < _FAINT), (a == 1) & (b == 0)
    settled = lost | unbounded
    a_, b_, gap_ = (
        np.where(settled, value, x)[..., None] for value, x in ((0.75, a), (0.25, b), (0.5, gap))
    )
    log_ratio = _log_ratio(a_, b_, gap_)

    def at(log_order: Float64) -> Float64:
        # With c = alpha - 1 the generalised mean is b e^m for m = -log((1 + (b/a)^c) / 2) / c, all
        # of it at most a.
        c = np.exp(log_order)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            m = np.where(b_ > 0, -np.log1p(np.expm1(-c * log_ratio) / 2) / c, 0.0)
            # What is missing from 1 in 1 - p_A - p_B + 2 mean. In a close vote the terms all but
            # cancel: what they were rounded by comes off, before the root makes much of it.
            drop = gap_ - 2 * b_ * np.expm1(m) - (16 * EPS * (1 + m) * gap_ + 4 * EPS * SMALLEST)
            drop = np.minimum(drop, 1.0)
            return np.asarray(np.sqrt(np.maximum(-2 / (1 + c) * np.log1p(-drop), 0.0)))

    shape = np.broadcast_shapes(a.shape, b.shape)
    radius = np.asarray(s * _largest(at, np.full(shape, -30.0), np.full(shape, 12.0)) * (1 - 1e-12))
    return finished(
        radius, np.broadcast_to(lost, radius.shape), np.broadcast_to(unbounded, radius.shape)
    )
