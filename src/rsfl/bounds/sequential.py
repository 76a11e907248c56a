"""A sequential test: what votes say of a probability, looked at as often as one likes."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rsfl._checks import Floats, Int64, number, numbers, unwrapped
from rsfl.bounds._safe import EPS
from rsfl.bounds._tails import LEAST, tail_error, votes_of

__all__ = ["log_wealth", "sequential_decision", "sequential_minimum_trials"]


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
    k, n = votes_of(successes, trials, low=0)
    p = numbers("p0", p0, 0, 1, open_low=True, open_high=True)
    k, n, p = np.broadcast_arrays(k, n, p)
    a, b = k + 0.5, n - k + 0.5
    log_success, log_failure = k * np.log(p), (n - k) * np.log1p(-p)
    # Where less than LEAST of the prior's likelihood is left above p, the wealth is told as 0.
    above = special.betaincc(a, b, p)
    above = np.where(above < LEAST, 0.0, above)
    # 1 - I_p(1/2, 1/2), from the side that keeps its digits
    angle = np.where(p < 0.5, np.arccos(np.sqrt(p)), np.arcsin(np.sqrt(1 - p)))
    prior = angle * (2 / np.pi)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(above) - np.log(prior)
    value = special.betaln(a, b) - np.log(np.pi) + log_ratio - log_success - log_failure
    rounding = EPS * (special.gammaln(n + 2.0) - log_success - log_failure + 8)
    return unwrapped(np.where(n == 0, 0.0, value - 8 * rounding - 2 * tail_error(k, n)))


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
    k, n = votes_of(successes, trials, low=0)
    p = numbers("p0", p0, 0, 1, open_low=True, open_high=True)
    alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
    target = -np.log(alpha) * (1 + 4 * EPS)
    q = np.where(p < 0.5, np.nextafter(1 - p, 1), 1 - p)  # exact from 1/2 on, rounded up below
    above = log_wealth(k, n, p) >= target
    below = log_wealth(n - k, n, np.minimum(q, np.nextafter(1.0, 0))) >= target
    sides = np.asarray(above, dtype=np.int64), np.asarray(below, dtype=np.int64)
    return unwrapped(sides[0] - sides[1])  # type: ignore[no-any-return]


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
