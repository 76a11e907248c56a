"""Linear classifiers under a change of their parameters: exact votes under Gaussian noise, and
exact radii."""

from collections.abc import Iterator
from math import log, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rsfl._checks import Float64, Floats, number, numbers
from rsfl.bounds._safe import EPS, LARGEST, SMALLEST, finished

__all__ = ["linear_vote_bounds", "linear_votes", "margin_radius"]

# P(Z > 9) = 1.1e-19: the largest of K normals is that far below the largest mean, or K times above
# it
_REACH = 9.0
_CELLS = 1 << 20  # float64 cells of one chunk's working arrays


def _grid(classes: int) -> Float64:
    """Nodes on which the trapezoid rule is exact to 1e-17 for that many classes.

    The integrand f = pdf(u) * product of Phi(u - a_j) is entire. On the line of height y, |pdf(u +
    iy)| is exp(y^2/2) pdf(u) and |Phi(u + iy)| <= Phi(u) + y exp(y^2/2) pdf(u) <= M(y) for all u,
    so the rule of step h errs by at most 2 exp(y^2/2) M^(K-1) / (exp(2 pi y / h) - 1). For y = 1/2,
    1 and 2, log M <= 0.0089, 0.2434 and 1.8580.
    """
    step = max(
        2 * pi * y / (log(2e17) + 1 + y * y / 2 + (classes - 1) * log_m)
        for y, log_m in ((0.5, 0.0089), (1.0, 0.2434), (2.0, 1.8580))
    )
    return np.linspace(-_REACH, _REACH, int(np.ceil(2 * _REACH / step)) + 1)


def _inputs(logits: ArrayLike, input_norms: ArrayLike) -> tuple[Float64, Float64]:
    mu = numbers("logits", logits, -np.inf, np.inf, open_low=True, open_high=True)
    if mu.ndim != 2 or mu.shape[1] < 2:
        raise ValueError(
            f"logits must have shape (inputs, classes) with at least 2 classes, got {mu.shape}"
        )
    norms = numbers("input_norms", input_norms, 0.0, np.inf, open_low=True, open_high=True)
    if norms.shape != mu.shape[:1]:
        raise ValueError(
            f"input_norms must have shape {mu.shape[:1]}, one an input, got {norms.shape}"
        )
    return mu, norms


def _scores(logits: ArrayLike, input_norms: ArrayLike, sigma: float) -> Float64:
    """Logits below the largest one, in standard deviations of their noise; shape (inputs, classes),
    at most 0."""
    mu, norms = _inputs(logits, input_norms)
    s = number("sigma", sigma, 0.0, np.inf, open_low=True, open_high=True)
    with np.errstate(over="ignore", under="ignore"):
        deviation = numbers("sigma * input_norms", s * norms, SMALLEST, LARGEST)
        behind = mu / 2 - mu.max(axis=1, keepdims=True) / 2  # of halves, which cannot overflow
        return np.asarray(2 * (behind / deviation[:, None]))


def _chunks(rows: int, cells: int) -> Iterator[slice]:
    size = max(1, _CELLS // cells)
    return (slice(start, start + size) for start in range(0, rows, size))


def linear_votes(logits: ArrayLike, input_norms: ArrayLike, *, sigma: float) -> Float64:
    r"""Exact vote probabilities of a linear classifier under Gaussian noise on its parameters.

    The logits of (x, 1) under :math:`W + N(0, \sigma^2 I)` are independent normals around the clean
    logits :math:`\mu_c`, all with standard deviation :math:`s = \sigma \|(x, 1)\|`, so that

    .. math:: p_c = \int \varphi(u - \mu_c / s) \prod_{j \ne c} \Phi(u - \mu_j / s) \, du.

    The integral is taken over the 18 units around the largest mean, by the trapezoid rule on nodes
    that all classes share.

    Assumes:
        The classifier is affine, its bias carries noise as well, and the label is the class of the
        largest logit.

    Args:
        logits: Clean logits of shape (inputs, K), K >= 2, finite.
        input_norms: l2 norms of (x, 1), shape (inputs,), positive.
        sigma: Standard deviation of the noise on every parameter, positive; times a norm it must be
            a number that float64 holds in full.

    Returns:
        Probabilities of shape (inputs, K), within (16 K + 128) * 2.2e-16 of the exact ones; for a
        certificate take :func:`linear_vote_bounds`.

    Raises:
        ValueError: An argument is out of its range, or shapes do not agree.
        TypeError: An argument is not made of numbers.

    Example:
        >>> linear_votes([[1.0, 0.0]], [2.0], sigma=0.5)
        array([[0.76024994, 0.23975006]])

    References:
        "Exact votes", in the documentation. L. N. Trefethen and J. A. C. Weideman, "The
        exponentially convergent trapezoidal rule", SIAM Review 2014, Theorem 5.1.
    """
    scores = _scores(logits, input_norms, sigma)
    nodes = _grid(scores.shape[1])
    step = nodes[1] - nodes[0]
    votes = np.empty_like(scores)
    for rows in _chunks(len(scores), scores.shape[1] * nodes.size):
        # Beyond 60 deviations nothing is left of a class, and squares of larger numbers might
        # overflow.
        z = nodes - np.maximum(scores[rows], -60.0)[:, :, None]
        below = special.ndtr(
            z
        )  # at least Phi(-9): dividing one factor out of the product loses no digits
        wins = np.prod(below, axis=1, keepdims=True) / below
        z *= z
        z *= -0.5
        votes[rows] = np.einsum("bcn,bcn->bc", np.exp(z, out=z), wins) * (step / sqrt(2 * pi))
    return votes


def _error(classes: int) -> float:
    """Bound on the absolute error of the votes: the quadrature's 1e-17, and above all rounding.

    All terms are positive and their sum is at most 1, so that the relative errors of K factors and
    of their arguments pass into it unmagnified; what lies outside the nodes adds (K + 1) Phi(-9).
    """
    return (16 * classes + 128) * EPS


def linear_vote_bounds(
    logits: ArrayLike, input_norms: ArrayLike, *, sigma: float
) -> tuple[Float64, Float64]:
    r"""Bounds on the exact vote probabilities of a linear classifier, each on its safe side.

    :func:`linear_votes` widened by its error, and closed forms in the tails, where the quadrature
    has no digits left: with :math:`m_c` the margin of the best class A over c and
    :math:`s = \sigma \|(x, 1)\|`,

    .. math::
        p_c \le \Phi\Bigl(\frac{-m_c}{\sqrt2 s}\Bigr), \qquad
        p_A \ge 1 - \sum_{c \ne A} \Phi\Bigl(\frac{-m_c}{\sqrt2 s}\Bigr).

    Assumes:
        As for :func:`linear_votes`.

    Args:
        logits: Clean logits of shape (inputs, K), K >= 2, finite.
        input_norms: l2 norms of (x, 1), shape (inputs,), positive.
        sigma: Standard deviation of the noise on every parameter, positive; times a norm it must be
            a number that float64 holds in full.

    Returns:
        Lower and upper bounds, both of shape (inputs, K): lower bounds below 1, upper bounds above
        0.

    Raises:
        ValueError: An argument is out of its range, or shapes do not agree.
        TypeError: An argument is not made of numbers.

    Example:
        >>> lower, upper = linear_vote_bounds([[9.0, 0.0]], [1.0], sigma=0.5)
        >>> bool(lower[0, 0] < 1), bool(0 < upper[0, 1] < 1e-36)
        (True, True)
    """
    scores = _scores(logits, input_norms, sigma)
    votes = linear_votes(logits, input_norms, sigma=sigma)
    error = _error(scores.shape[1])
    # The tail of a normal comes out right to a few units times 1 + z^2, and as nothing below the
    # smallest float.
    duels = special.ndtr(scores / sqrt(2)) * (1 + 16 * EPS * (1 + np.minimum(scores**2, 1600)))
    duels = np.maximum(duels, SMALLEST)
    best = np.argmax(scores, axis=1)[:, None]
    np.put_along_axis(duels, best, 0.0, axis=1)
    lost = duels.sum(axis=1, keepdims=True) * (1 + scores.shape[1] * EPS) + EPS
    np.put_along_axis(duels, best, 1.0, axis=1)
    lower = np.maximum(votes - error, 0.0)
    np.put_along_axis(lower, best, np.maximum(np.take_along_axis(lower, best, 1), 1 - lost), axis=1)
    upper = np.minimum(votes + error, duels)
    return lower, upper


def margin_radius(logits: ArrayLike, input_norms: ArrayLike) -> Floats:
    r"""How far all parameters together may move (l2) before a linear classifier can change its
    label.

    .. math:: \min_{B \ne A} \frac{\mu_A - \mu_B}{\sqrt2 \, \|(x, 1)\|}

    It is exact: the closest parameters with another label are that far away. No sampling, no
    failure probability.

    Assumes:
        The classifier is affine, its label is the class of the largest logit, and the logits are
        exact.

    Args:
        logits: Logits of shape (inputs, K), K >= 2, finite.
        input_norms: l2 norms of (x, 1), shape (inputs,), positive.

    Returns:
        Radii of shape (inputs,), never above the exact ones, 0 for a tie; the guarantee holds in
        the open ball.

    Raises:
        ValueError: An argument is out of its range, or shapes do not agree.
        TypeError: An argument is not made of numbers.

    Example:
        >>> margin_radius([[1.0, 0.0, 0.5]], [2.0])
        array([0.1767...])
    """
    mu, norms = _inputs(logits, input_norms)
    first, second = -np.partition(-mu, 1, axis=1)[:, :2].T
    with np.errstate(over="ignore"):
        gap = np.minimum(first - second, LARGEST)
        radius = np.minimum(gap / norms, LARGEST) / sqrt(2)
    return finished(radius, first == second, np.zeros(radius.shape, dtype=bool))
