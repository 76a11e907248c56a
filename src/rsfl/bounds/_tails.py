"""Counts of votes, and what is granted to the rounding of their tails."""

import numpy as np
from numpy.typing import ArrayLike

from rsfl._checks import Float64, Int64, counts

__all__ = ["LEAST", "tail_error", "votes_of"]

LEAST = 1e-200  # of a tail: far below it scipy's loses its digits before it underflows


def tail_error(successes: ArrayLike, trials: ArrayLike) -> Float64:
    """The relative error that is granted to the binomial tails: every one is compared after
    widening it by this.

    Against balls, scipy 1.12 to 1.15 err by up to 1.6e-16 times the successes or the failures,
    whichever are fewer, scipy 1.17 by a tenth of that, and all by up to 2e-13 where these are few.
    """
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    return np.asarray(1e-12 + 4e-16 * np.minimum(k, n - k))


def votes_of(successes: ArrayLike, trials: ArrayLike, low: int = 1) -> tuple[Int64, Int64]:
    """Successes and votes, checked and of one shape."""
    k, n = np.broadcast_arrays(counts("successes", successes), counts("trials", trials, low))
    if (bad := k > n).any():
        raise ValueError(f"successes must not exceed trials, got {k[bad][0]} of {n[bad][0]}")
    return k, n
