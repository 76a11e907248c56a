"""Enclosures of exact values in ball arithmetic: an oracle that cannot err by rounding.

A ball is a number with a radius that covers every error made on the way (FLINT's Arb). Where two
balls overlap, the precision is raised until they do not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from flint import arb, ctx

__all__ = [
    "at_most",
    "binomial_at_least",
    "binomial_at_most",
    "log_wealth",
    "normal_above",
    "quantile",
]

PRECISIONS = (106, 212, 500, 1600, 6000)


@contextmanager
def precision(bits: int) -> Iterator[None]:
    before, ctx.prec = ctx.prec, bits
    try:
        yield
    finally:
        ctx.prec = before


def at_most(small: Callable[[], arb], large: Callable[[], arb]) -> bool:
    """Whether ``small() <= large()``, which are evaluated in as many bits as it takes."""
    for bits in PRECISIONS:
        with precision(bits):
            one, two = small(), large()
            if one <= two:
                return True
            if one > two:
                return False
    raise ArithmeticError(f"undecided at {PRECISIONS[-1]} bits: {one} and {two}")


def binomial_at_least(k: int, n: int, p: arb) -> arb:
    """P[Bin(n, p) >= k], the regularized incomplete beta function I_p(k, n - k + 1)."""
    return arb(1) if k <= 0 else p.beta_lower(arb(k), arb(n - k + 1), 1)


def binomial_at_most(k: int, n: int, p: arb) -> arb:
    """P[Bin(n, p) <= k]."""
    return arb(1) if k >= n else beta_above(p, arb(k + 1), arb(n - k))


def beta_above(x: arb, a: arb, b: arb) -> arb:
    """1 - I_x(a, b), from the side that keeps its digits."""
    below = x.beta_lower(a, b, 1)
    return 1 - below if below < 0.5 else (1 - x).beta_lower(b, a, 1)


def normal_above(z: arb) -> arb:
    """P[Z > z]."""
    return (z / arb(2).sqrt()).erfc() / 2


def quantile(p: arb) -> arb:
    """The z with P[Z <= z] = p, from the tail on its own side."""
    if p <= arb(0.5):
        return -arb(2).sqrt() * (2 * p).erfcinv()
    return arb(2).sqrt() * (2 * (1 - p)).erfcinv()


def log_wealth(k: int, n: int, p: arb) -> arb:
    """The logarithm of the mixture's likelihood ratio (see rsfl.bounds.log_wealth)."""
    half = arb(0.5)
    a, b = k + half, n - k + half
    log_beta = a.lgamma() + b.lgamma() - (a + b).lgamma()
    above, prior = beta_above(p, a, b), beta_above(p, half, half)
    ratio = above.log() - prior.log() + log_beta - arb.pi().log()
    return ratio - k * p.log() - (n - k) * (1 - p).log()


def exact(value: float) -> arb:
    """The ball of radius 0 around a float; infinities too."""
    if np.isposinf(value):
        return arb.pos_inf()
    return arb.neg_inf() if np.isneginf(value) else arb(float(value))
