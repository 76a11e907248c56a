"""What a count of votes says about a probability: one-sided bounds."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rsfl._checks import Float64, Floats, Int64, counts, number, numbers, probabilities, unwrapped
from rsfl.bounds._safe import EPS
from rsfl.bounds._tails import LEAST, tail_error, votes_of

__all__ = [
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "hoeffding_lower",
    "hoeffding_upper",
    "minimum_trials",
]

_FEW = (
    50  # successes up to which a lower tail is summed: scipy 1.12's loses 6e-8 there, 1.17's 3e-11
)


def _levels(alpha: ArrayLike) -> Float64:
    """Levels of a Clopper-Pearson bound; with less than LEAST no tail could be verified."""
    return numbers("alpha", alpha, LEAST, 1, open_high=True)


def _edge(
    safe: Callable[[Float64], NDArray[np.bool_]], start: Float64, *, safe_end: float
) -> Float64:
    """A safe probability p within 1e-9 min(p, 1 - p) of the edge of the safe ones, which reach from
    ``safe_end`` (0 or 1).

    ``start`` is kept where it is such a point. Elsewhere the edge is bisected: scipy's inverse of
    the incomplete beta function is a guess, and at a thousand successes in a billion trials a wrong
    one.
    """
    outward = 5e-10 if safe_end == 0 else -5e-10
    start = np.where(np.isnan(start), 1 - safe_end, start)
    good = safe(start)
    further = start + outward * np.minimum(start, 1 - start)
    settled = good & ~safe(np.clip(further, 0.0, 1.0))
    inner, outer = np.where(good, start, safe_end), np.where(good, 1 - safe_end, start)
    while True:
        middle = (inner + outer) / 2
        # No finer than wanted, nor than floats are.
        near = np.abs(outer - inner) <= 1e-10 * np.minimum(inner, 1 - inner)
        wide = ~(settled | near | (middle == inner) | (middle == outer))
        if not wide.any():
            return inner
        good = safe(middle)
        inner, outer = np.where(wide & good, middle, inner), np.where(wide & ~good, middle, outer)


def _few_or_less(k: Int64, n: Int64, p: Float64) -> Float64:
    """P[Bin(n, p) <= k] for k below _FEW and p below 1, from its last term, which does not
    underflow where the level does not, and the ratios of each term to the one after it."""
    with np.errstate(all="ignore"):
        odds = p / (1 - p)
        log_last = (n - k) * np.log1p(-p)
        ratios, ratio = np.ones_like(p), np.ones_like(p)
        for i in range(int(k.max(initial=0))):
            log_last = log_last + np.where(i < k, np.log(p * (n - i) / (i + 1.0)), 0.0)
            # from P[k - i] to P[k - i - 1], nothing from P[0] on
            ratio = ratio * np.maximum(k - i, 0) / (n - k + i + 1.0) / odds
            ratios = ratios + ratio
        return np.asarray(np.where(p > 0, np.exp(log_last) * ratios, 1.0))


def _likely(tail: ArrayLike, k: Int64, n: Int64, p: Float64, alpha: Float64) -> Float64:
    """P[Bin(n, p) >= k], of which ``tail`` is scipy's value: where that is above one half and k is
    small it may be wrong by 3e-8, which matters to large levels alone."""
    few = (k > 0) & (k <= _FEW) & (alpha > 0.25)
    if not few.any():
        return np.asarray(tail, dtype=np.float64)
    below = _few_or_less(np.where(few, k - 1, 0), n, np.minimum(p, np.nextafter(1.0, 0.0)))
    return np.asarray(np.where(few & (below < 0.75), 1 - below, tail), dtype=np.float64)


def clopper_pearson_lower(successes: ArrayLike, trials: ArrayLike, alpha: ArrayLike) -> Floats:
    r"""One-sided lower confidence bound on a success probability (Clopper-Pearson).

    The :math:`p` with :math:`P[\mathrm{Bin}(n, p) \ge k] = \alpha`, and 0 for :math:`k = 0`.

    Assumes:
        The trials are independent with one probability of success, and ``trials`` was fixed before
        they were seen: recomputing the bound while votes come in and stopping at a success voids it
        (see :func:`log_wealth`).

    Args:
        successes: Number of successes k, whole, in [0, trials].
        trials: Number of trials n, whole, at least 1.
        alpha: Probability in [1e-200, 1) with which the bound may fail.

    Returns:
        A bound p never above the exact one, and for up to a billion trials and alpha up to 1/2
        within 1e-9 min(p, 1 - p) of it or a few floats.

    Raises:
        ValueError: An argument is out of its range, or a count is fractional.
        TypeError: An argument is not a number.

    Example:
        >>> clopper_pearson_lower(990, 1000, alpha=0.001)
        0.9760...
        >>> clopper_pearson_lower([0, 10], 10, alpha=0.001)
        array([0.        , 0.50118723])

    References:
        Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    k, n = votes_of(successes, trials)
    k, n, alpha_ = np.broadcast_arrays(k, n, _levels(alpha))
    some = k > 0
    a, b = np.where(some, k, 1.0), np.where(some, n - k + 1.0, 1.0)
    error = tail_error(k, n)
    p = special.betaincinv(a, b, alpha_ / (1 + error) ** 2)

    def safe(p: Float64) -> NDArray[np.bool_]:
        # P[Bin(n, p) >= k] <= alpha, of "One bound: Clopper-Pearson" in the documentation.
        tail = _likely(special.betainc(a, b, p), k, n, p, alpha_)
        return np.asarray(tail * (1 + error) <= alpha_)

    return unwrapped(np.where(some, _edge(safe, np.asarray(p, dtype=np.float64), safe_end=0), 0.0))


def clopper_pearson_upper(successes: ArrayLike, trials: ArrayLike, alpha: ArrayLike) -> Floats:
    r"""One-sided upper confidence bound on a success probability (Clopper-Pearson).

    The :math:`p` with :math:`P[\mathrm{Bin}(n, p) \le k] = \alpha`, and 1 for :math:`k = n`.

    Assumes:
        As for :func:`clopper_pearson_lower`.

    Args:
        successes: Number of successes k, whole, in [0, trials].
        trials: Number of trials n, whole, at least 1.
        alpha: Probability in [1e-200, 1) with which the bound may fail.

    Returns:
        A bound p never below the exact one, and for up to a billion trials and alpha up to 1/2
        within 1e-9 min(p, 1 - p) of it or a few floats.

    Raises:
        ValueError: An argument is out of its range, or a count is fractional.
        TypeError: An argument is not a number.

    Example:
        >>> clopper_pearson_upper(10, 1000, alpha=0.001)
        0.0239...

    References:
        Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    k, n = votes_of(successes, trials)
    k, n, alpha_ = np.broadcast_arrays(k, n, _levels(alpha))
    some = k < n
    few = some & (k < _FEW)
    a, b = np.where(some, k + 1.0, 1.0), np.where(some, n - k, 1.0)
    error = tail_error(k, n)
    p = special.betainccinv(a, b, alpha_ / (1 + error) ** 2)

    def safe(p: Float64) -> NDArray[np.bool_]:
        summed = _few_or_less(np.where(few, k, 0), n, np.minimum(p, np.nextafter(1.0, 0.0)))
        tail = np.where(few, summed, special.betaincc(a, b, p))
        # P[Bin(n, p) <= k] <= alpha; at p = 1 there is nothing to exceed.
        return np.asarray((tail * (1 + error) <= alpha_) | (p == 1))

    return unwrapped(np.where(some, _edge(safe, np.asarray(p, dtype=np.float64), safe_end=1), 1.0))


def _hoeffding_width(trials: ArrayLike, alpha: ArrayLike) -> Float64:
    n = counts("trials", trials, 1)
    alpha_ = numbers("alpha", alpha, 0, 1, open_low=True, open_high=True)
    return np.asarray(np.sqrt(-np.log(alpha_) / (2 * n)) * (1 + 8 * EPS))


def hoeffding_lower(mean: ArrayLike, trials: ArrayLike, alpha: ArrayLike) -> Floats:
    r"""One-sided lower confidence bound on the expectation of a variable in [0, 1] (Hoeffding).

    :math:`\max(0, \hat p - \sqrt{\log(1/\alpha) / (2n)})`

    Assumes:
        The trials are independent and identically distributed in [0, 1], and ``trials`` was fixed
        beforehand.

    Args:
        mean: Observed mean in [0, 1].
        trials: Number of trials n, whole, at least 1.
        alpha: Probability in (0, 1) with which the bound may fail.

    Returns:
        A bound never above the exact formula. Clopper-Pearson is never looser for votes.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> hoeffding_lower(1.0, 1000, alpha=0.001)
        0.9412...

    References:
        Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 58 (1963);
        the choice of Xie et al., "CRFL: Certifiably robust federated learning against backdoor
        attacks", ICML 2021.
    """
    mean_ = probabilities("mean", mean)
    return unwrapped(np.maximum(mean_ - _hoeffding_width(trials, alpha) - EPS, 0.0))


def hoeffding_upper(mean: ArrayLike, trials: ArrayLike, alpha: ArrayLike) -> Floats:
    r"""One-sided upper confidence bound on the expectation of a variable in [0, 1] (Hoeffding).

    :math:`\min(1, \hat p + \sqrt{\log(1/\alpha) / (2n)})`

    Assumes:
        As for :func:`hoeffding_lower`.

    Args:
        mean: Observed mean in [0, 1].
        trials: Number of trials n, whole, at least 1.
        alpha: Probability in (0, 1) with which the bound may fail.

    Returns:
        A bound never below the exact formula.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> hoeffding_upper(0.0, 1000, alpha=0.001)
        0.0587...

    References:
        As for :func:`hoeffding_lower`.
    """
    mean_ = probabilities("mean", mean)
    return unwrapped(np.minimum(mean_ + _hoeffding_width(trials, alpha) + EPS, 1.0))


def minimum_trials(
    alpha: float,
    threshold: float = 0.5,
    *,
    lower: Callable[[int, int, float], float] = clopper_pearson_lower,
) -> int:
    r"""The smallest number of trials that can put a lower confidence bound above a threshold.

    Unanimous votes give :math:`\alpha^{1/n}` with Clopper-Pearson, so fewer trials than this can
    only abstain.

    Args:
        alpha: Level of the bound, in (0, 1).
        threshold: Probability in (0, 1) that the bound has to exceed; 1/2 for any certificate at
            all.
        lower: The bound, of successes, trials and level; it must not be tighter than
            Clopper-Pearson.

    Returns:
        The least n with ``lower(n, n, alpha) > threshold``.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> minimum_trials(0.001), minimum_trials(0.001 / 2)
        (10, 11)
    """
    alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
    threshold = number("threshold", threshold, 0, 1, open_low=True, open_high=True)
    n = max(1, int(np.log(alpha) / np.log(threshold)) - 1)
    while not lower(n, n, alpha) > threshold:
        n += 1
    return n
