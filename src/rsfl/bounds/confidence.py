"""What a count of votes says about a probability: one-sided bounds, the top-two test and a
sequential test."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rsfl._checks import Float64, Floats, Int64, counts, number, numbers, probabilities, unwrapped
from rsfl.bounds._safe import EPS

__all__ = [
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "hoeffding_lower",
    "hoeffding_upper",
    "log_wealth",
    "minimum_trials",
    "sequential_decision",
    "sequential_minimum_trials",
    "top_two_minimum_trials",
    "top_two_p_value",
]

_FEW = (
    50  # successes up to which a lower tail is summed: scipy 1.12's loses 6e-8 there, 1.17's 3e-11
)
_LEAST = 1e-200  # of a tail: far below it scipy's loses its digits before it underflows


def _tail_error(successes: ArrayLike, trials: ArrayLike) -> Float64:
    """The relative error that is granted to the binomial tails below: every one is compared after
    widening it by this.

    Against balls, scipy 1.12 to 1.15 err by up to 1.6e-16 times the successes or the failures,
    whichever are fewer, scipy 1.17 by a tenth of that, and all by up to 2e-13 where these are few.
    """
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    return np.asarray(1e-12 + 4e-16 * np.minimum(k, n - k))


def _levels(alpha: ArrayLike) -> Float64:
    """Levels of a Clopper-Pearson bound; with less than _LEAST no tail could be verified."""
    return numbers("alpha", alpha, _LEAST, 1, open_high=True)


def _votes(successes: ArrayLike, trials: ArrayLike, low: int = 1) -> tuple[Int64, Int64]:
    k, n = np.broadcast_arrays(counts("successes", successes), counts("trials", trials, low))
    if (bad := k > n).any():
        raise ValueError(f"successes must not exceed trials, got {k[bad][0]} of {n[bad][0]}")
    return k, n


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
    k, n = _votes(successes, trials)
    k, n, alpha_ = np.broadcast_arrays(k, n, _levels(alpha))
    some = k > 0
    a, b = np.where(some, k, 1.0), np.where(some, n - k + 1.0, 1.0)
    error = _tail_error(k, n)
    p = special.betaincinv(a, b, alpha_ / (1 + error) ** 2)

    def safe(p: Float64) -> NDArray[np.bool_]:
        return np.asarray(special.betainc(a, b, p) * (1 + error) <= alpha_)

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
    k, n = _votes(successes, trials)
    k, n, alpha_ = np.broadcast_arrays(k, n, _levels(alpha))
    some = k < n
    few = some & (k < _FEW)
    a, b = np.where(some, k + 1.0, 1.0), np.where(some, n - k, 1.0)
    error = _tail_error(k, n)
    p = special.betainccinv(a, b, alpha_ / (1 + error) ** 2)

    def safe(p: Float64) -> NDArray[np.bool_]:
        summed = _few_or_less(np.where(few, k, 0), n, np.minimum(p, np.nextafter(1.0, 0.0)))
        tail = np.where(few, summed, special.betaincc(a, b, p))
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


def top_two_p_value(first: ArrayLike, second: ArrayLike) -> Floats:
    r"""P-value of the test that the most voted class is the most probable one.

    The two-sided exact binomial test of ``first`` against ``second`` at 1/2:
    :math:`\min(1, 2 P[\mathrm{Bin}(n, 1/2) \ge \max])` with n = first + second. A prediction
    abstains when it exceeds alpha.

    Assumes:
        ``first`` and ``second`` are the two largest class counts of independent votes whose number
        was fixed beforehand.

    Args:
        first: Votes of one of the two leading classes, whole, at least 0.
        second: Votes of the other, whole, at least 0.

    Returns:
        A p-value never below the exact one; 2e-200 where that is smaller still, unless all votes
        agree.

    Raises:
        ValueError: A count is negative or fractional.
        TypeError: A count is not a number.

    Example:
        >>> top_two_p_value(11, 0)
        0.000976...

    References:
        Hung and Fithian, "Rank verification for exponential families", Annals of Statistics 47
        (2019); used by Cohen et al., "Certified adversarial robustness via randomized smoothing",
        ICML 2019.
    """
    a, b = np.broadcast_arrays(counts("first", first), counts("second", second))
    high, low = np.maximum(a, b), np.minimum(a, b)
    tail = special.betainc(np.maximum(high, 1.0), low + 1.0, 0.5) * (1 + _tail_error(low, a + b))
    tail = np.maximum(tail, _LEAST)
    # 2^(1-n), but no less than a float can be
    unanimous = np.maximum(np.ldexp(1.0, 1 - np.minimum(high, 2000)), 5e-324)
    value = np.where(low == 0, unanimous, np.minimum(2 * tail, 1.0))
    return unwrapped(np.where(high == low, 1.0, value))


def top_two_minimum_trials(alpha: float) -> int:
    """The smallest number of votes with which :func:`top_two_p_value` can fall to alpha.

    Args:
        alpha: Level of the test, in (0, 1).

    Returns:
        The least n with ``top_two_p_value(n, 0) <= alpha``.

    Raises:
        ValueError: alpha is out of its range.
        TypeError: alpha is not a number.

    Example:
        >>> top_two_minimum_trials(0.001)
        11
    """
    alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
    n = 1
    while top_two_p_value(n, 0) > alpha:
        n += 1
    return n


def log_wealth(successes: ArrayLike, trials: ArrayLike, p0: ArrayLike) -> Floats:
    r"""Log wealth of the one-sided bet that a success probability exceeds p0.

    The likelihood ratio to :math:`p_0`, averaged over a Beta(1/2, 1/2) prior restricted to
    :math:`(p_0, 1]`:

    .. math::
        W = \frac{B(k + \tfrac12, n - k + \tfrac12)\,(1 - I_{p_0}(k + \tfrac12, n - k + \tfrac12))}
                 {B(\tfrac12, \tfrac12)\,(1 - I_{p_0}(\tfrac12, \tfrac12))\, p_0^k (1 - p_0)^{n-k}}

    For every success probability :math:`p \le p_0` this is a non-negative supermartingale that
    starts at 1, so by Ville's inequality it *ever* reaches :math:`1/\alpha` with probability at
    most :math:`\alpha`: it may be looked at after any number of votes, and one may stop when one
    likes.

    Assumes:
        The votes are independent with one success probability, and successes are votes for a class
        that was chosen without them.

    Args:
        successes: Number of successes k so far, whole, in [0, trials].
        trials: Number of votes n so far, whole, at least 0.
        p0: Probability in (0, 1) that is bet against.

    Returns:
        The natural logarithm of W, never above the exact one.

    Raises:
        ValueError: An argument is out of its range, or a count is fractional.
        TypeError: An argument is not a number.

    Example:
        >>> log_wealth(12, 12, 0.5) > 6.91  # log(1 / 0.001) = 6.907...
        True

    References:
        Ville, "Etude critique de la notion de collectif" (1939); Voracek, "Treatment of statistical
        estimation problems in randomized smoothing for adversarial robustness", NeurIPS 2024, for
        the use here.
    """
    k, n = _votes(successes, trials, low=0)
    p = numbers("p0", p0, 0, 1, open_low=True, open_high=True)
    k, n, p = np.broadcast_arrays(k, n, p)
    a, b = k + 0.5, n - k + 0.5
    log_success, log_failure = k * np.log(p), (n - k) * np.log1p(-p)
    # Where less than _LEAST of the prior's likelihood is left above p, the wealth is told as 0.
    above = special.betaincc(a, b, p)
    above = np.where(above < _LEAST, 0.0, above)
    # 1 - I_p(1/2, 1/2), from the side that keeps its digits
    angle = np.where(p < 0.5, np.arccos(np.sqrt(p)), np.arcsin(np.sqrt(1 - p)))
    prior = angle * (2 / np.pi)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(above) - np.log(prior)
    value = special.betaln(a, b) - np.log(np.pi) + log_ratio - log_success - log_failure
    rounding = EPS * (special.gammaln(n + 2.0) - log_success - log_failure + 8)
    return unwrapped(np.where(n == 0, 0.0, value - 8 * rounding - 2 * _tail_error(k, n)))


def sequential_decision(
    successes: ArrayLike, trials: ArrayLike, p0: ArrayLike, alpha: float
) -> Int64 | int:
    r"""Whether votes seen so far already decide on which side of p0 their success probability lies.

    +1 once :func:`log_wealth` reaches :math:`\log(1/\alpha)`, -1 once the mirrored bet on failures
    does, else 0. Each of the two decisions is wrong with probability at most alpha, however often
    and whenever one looks.

    Assumes:
        As for :func:`log_wealth`.

    Args:
        successes: Number of successes so far, whole, in [0, trials].
        trials: Number of votes so far, whole, at least 0.
        p0: The threshold, in (0, 1).
        alpha: Probability in (0, 1) with which each decision may be wrong.

    Returns:
        +1 (above p0), -1 (below p0) or 0 (undecided).

    Raises:
        ValueError: An argument is out of its range, or a count is fractional.
        TypeError: An argument is not a number.

    Example:
        >>> sequential_decision([40, 20, 0], 40, p0=0.5, alpha=0.001)
        array([ 1,  0, -1])
    """
    k, n = _votes(successes, trials, low=0)
    p = numbers("p0", p0, 0, 1, open_low=True, open_high=True)
    alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
    target = -np.log(alpha) * (1 + 4 * EPS)
    q = np.where(p < 0.5, np.nextafter(1 - p, 1), 1 - p)  # exact from 1/2 on, rounded up below
    above = log_wealth(k, n, p) >= target
    below = log_wealth(n - k, n, np.minimum(q, np.nextafter(1.0, 0))) >= target
    return unwrapped(np.asarray(above, dtype=np.int64) - np.asarray(below, dtype=np.int64))  # type: ignore[no-any-return]


def sequential_minimum_trials(p0: float, alpha: float) -> int:
    """The smallest number of votes after which the sequential test can decide for "above p0".

    Args:
        p0: The threshold, in (0, 1).
        alpha: Level of the test, in (0, 1).

    Returns:
        The least n at which unanimous votes decide.

    Raises:
        ValueError: An argument is out of its range, or no count below 2**53 decides.
        TypeError: An argument is not a number.

    Example:
        >>> sequential_minimum_trials(0.5, 0.001)
        12
    """
    p0 = number("p0", p0, 0, 1, open_low=True, open_high=True)
    high = 1
    while sequential_decision(high, high, p0, alpha) != 1:
        high *= 2
        if high > 2**53:
            raise ValueError(f"p0 is too close to 1 for any number of votes to decide, got {p0!r}")
    low = high // 2  # unanimous wealth grows with every vote, so the answer can be bisected
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if sequential_decision(middle, middle, p0, alpha) == 1 else (middle, high)
        )
    return high
