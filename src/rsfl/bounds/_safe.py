"""How numbers enter and leave a formula without losing digits or direction."""

import numpy as np
from numpy.typing import ArrayLike

from rsfl._checks import Float64, Floats, probabilities, unwrapped

__all__ = ["EPS", "LARGEST", "SMALLEST", "ULP", "finished", "pair", "up"]

EPS = float(np.finfo(np.float64).eps)
LARGEST = float(np.finfo(np.float64).max)
SMALLEST = float(np.finfo(np.float64).tiny)  # the least number that has all its digits
ULP = 2.0**-50  # eight units of rounding: more than any one short expression can lose


def pair(p_a: ArrayLike, p_b: ArrayLike | None) -> tuple[Float64, Float64, Float64, Float64]:
    """p_a, p_b, p_a - p_b and 1 - p_a + p_b, each right to a few units in its last place; p_b=None
    is 1 - p_a."""
    a = probabilities("p_a", p_a)
    if p_b is None:
        b = 1 - a
        return (
            a,
            b,
            2 * a - 1,
            2 * (1 - a),
        )  # each exact where a certificate is possible, from 1/2 on
    a, b = np.broadcast_arrays(a, probabilities("p_b", p_b))
    return a, b, a - b, (1 - a) + b


def finished(radius: Float64, lost: np.ndarray, unbounded: np.ndarray) -> Floats:
    """The radius a few units in the last place down, 0 for a lost vote, inf only where the law
    itself says so."""
    # The step is for the smallest floats, which a factor leaves as they are.
    safe = np.clip(np.nextafter(radius * (1 - 16 * EPS), -1), 0.0, LARGEST)
    return unwrapped(np.where(lost, 0.0, np.where(unbounded, np.inf, safe)))


def up(operations: int) -> float:
    """Factor that makes up for the rounding of so many operations on non-negative numbers.

    How operations are counted, wherever this is called: each +, *, / and root between an input and
    the result rounds to within 2^-53 of itself, and none of them enlarges an error that its
    arguments bring (a difference would, and must not occur). So the longest chain of operations
    counts, a sum of m terms as m - 1. The factor allows each twice its error, and four more: for
    the product with the factor itself, and for what is told of an input that was rounded.
    """
    return 1.0 + (operations + 4) * 2.0**-52
