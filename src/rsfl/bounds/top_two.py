"""Whether the class with the most votes is the most probable one."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rsfl._checks import Floats, counts, number, unwrapped
from rsfl.bounds._tails import LEAST, tail_error

__all__ = ["top_two_minimum_trials", "top_two_p_value"]


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
    tail = special.betainc(np.maximum(high, 1.0), low + 1.0, 0.5) * (1 + tail_error(low, a + b))
    tail = np.maximum(tail, LEAST)
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
