"""What a count of votes says: binomial tails, confidence bounds, the top-two and the sequential
test."""

from dataclasses import dataclass
from math import isnan
from typing import Literal, TypeAlias

from flint import arb, ctx

from rsfl.verify.arithmetic.number import Number, Real, complement, exact

__all__ = [
    "Confidence",
    "binomial_tail",
    "decides",
    "log_wealth",
    "lower_probability",
    "top_two_p_value",
    "upper_probability",
]

Confidence: TypeAlias = Literal["clopper-pearson", "hoeffding"]


def _geometric_sum(k: int, n: int, odds: arb, bits: int) -> arb:
    """The sum of P[X = j] / P[X = k] over j >= k, for k above the mean, to so many bits.

    That is 2F1(k - n, 1; k + 1; -odds), by Gauss's continued fraction (DLMF 15.7.5). All its ratios
    of contiguous functions are positive, as the functions are sums of positive terms; so one of odd
    order, which is 1 / (1 + something positive), lies in [0, 1]. The fraction is evaluated backward
    from that.
    """
    rest, depth = n - k, max(8, bits // 2)
    while True:
        depth = min(depth, rest)
        ratio = arb(1) if depth == rest else arb(0.5, 0.5)
        for m in range(depth, -1, -1):
            ratio = 1 / (
                1 - odds * ((rest - m) * (k + m)) / ((k + 2 * m) * (k + 2 * m + 1)) * ratio
            )
            if m:
                ratio = 1 / (1 + odds * (m * (n + m)) / ((k + 2 * m - 1) * (k + 2 * m)) * ratio)
        if depth == rest or ratio.rel_accuracy_bits() >= bits:
            return ratio
        depth *= 2


def binomial_tail(k: int, n: int, p: arb, bits: int | None = None) -> arb:
    """P[Bin(n, p) >= k], enclosed to about so many bits (half the working precision), for p in
    [0, 1]."""
    if k <= 0 or (p == 1 and k <= n):
        return arb(1)
    if k > n or p == 0:
        return arb(0)
    q = 1 - p
    if not k + q > n * p:  # below the mean: the other tail is the shorter
        return 1 - binomial_tail(n - k + 1, n, q, bits)
    choose = arb(n + 1).lgamma() - arb(k + 1).lgamma() - arb(n - k + 1).lgamma()
    mass = (choose + k * p.log() + (n - k) * q.log()).exp()
    return mass * _geometric_sum(k, n, p / q, bits or ctx.prec // 2)


@dataclass(frozen=True)
class _LowerRoot(Number):
    """The p with P[Bin(n, p) >= k] = alpha, for 0 < k <= n: claims are compared at the tail."""

    k: int
    n: int
    alpha: Number

    def compare(self, claim: "float | arb") -> int:
        if isinstance(claim, float) and isnan(claim):
            return 1
        p = arb(claim)
        if p <= 0:
            return -1
        if p >= 1:
            return 1
        # Few bits tell the bounds of two counts apart, a claim that was rounded needs more.
        for bits in (16, 48, *(2**e for e in range(7, 13))):
            with ctx.workprec(bits + 80):
                room = self.alpha.enclose() - binomial_tail(self.k, self.n, p, bits)
                if room > 0 or room < 0:
                    return -1 if room > 0 else 1
        return 0


def _root(k: int, n: int, alpha: Number) -> Number:
    def enclose() -> arb:
        if k == n:
            return (alpha.enclose().log() / n).exp()
        return _bisected(root, ctx.prec)

    root = _LowerRoot(enclose, k, n, alpha)
    return root


def _bisected(number: Number, bits: int) -> arb:
    """An enclosure of a number in (0, 1) that can only be compared, relative to its distance to the
    nearer end."""
    with ctx.workprec(2 * bits + 2200):  # every point met is a short dyadic number, held exactly
        upper = number.compare(0.5) < 0

        def beyond(distance: arb) -> bool:
            """Whether the number lies farther than that from the nearer end."""
            return (number.compare(1 - distance) > 0) if upper else (number.compare(distance) < 0)

        high = arb(0.5)
        while not beyond(high / 2):
            high /= 2
        low = high / 2
        for _ in range(bits // 2):
            middle = (low + high) / 2
            low, high = (middle, high) if beyond(middle) else (low, middle)
        found = low.union(high)
        return 1 - found if upper else found


def lower_probability(
    k: int, n: int, alpha: Real, confidence: Confidence = "clopper-pearson"
) -> Number:
    """The lower confidence bound at level alpha for k successes of n.

    Args:
        k: Successes.
        n: Trials, at least 1.
        alpha: Level in (0, 1).
        confidence: Clopper-Pearson, or Hoeffding of the mean k / n.
    """
    level = exact(alpha)
    if confidence == "hoeffding":
        return Number(lambda: (arb(k) / n - _hoeffding(n, level)).max(arb(0)))
    return exact(0) if k == 0 else _root(k, n, level)


def upper_probability(
    k: int, n: int, alpha: Real, confidence: Confidence = "clopper-pearson"
) -> Number:
    """The upper confidence bound at level alpha for k successes of n.

    Args:
        k: Successes.
        n: Trials, at least 1.
        alpha: Level in (0, 1).
        confidence: Clopper-Pearson, or Hoeffding of the mean k / n.
    """
    level = exact(alpha)
    if confidence == "hoeffding":
        return Number(lambda: (arb(k) / n + _hoeffding(n, level)).min(arb(1)))
    if k == n:
        return exact(1)
    return complement(_root(n - k, n, level))


def _hoeffding(n: int, alpha: Number) -> arb:
    return (-alpha.enclose().log() / (2 * n)).sqrt()


def top_two_p_value(first: int, second: int) -> Number:
    """The p-value of the two-sided exact test that two classes are equally probable."""
    high, low = max(first, second), min(first, second)
    if high == low:
        return exact(1)
    return Number(lambda: (2 * binomial_tail(high, high + low, arb(0.5))).min(arb(1)))


def log_wealth(k: int, n: int, p0: Real) -> Number:
    """The logarithm of the likelihood ratio of k successes of n to p0, averaged over Beta(1/2, 1/2)
    beyond p0."""
    if n == 0:
        return exact(0)
    threshold = exact(p0)

    def enclose() -> arb:
        p, half = threshold.enclose(), arb(0.5)
        q = 1 - p
        a, b = k + half, n - k + half

        def beyond(a: arb, b: arb) -> arb:  # 1 - I_p(a, b) = I_q(b, a)
            return q.beta_lower(b, a, 1)

        log_beta = a.lgamma() + b.lgamma() - (a + b).lgamma() - arb.pi().log()
        return (
            log_beta + (beyond(a, b) / beyond(half, half)).log() - k * p.log() - (n - k) * q.log()
        )

    return Number(enclose)


def decides(k: int, n: int, p0: Real, alpha: Real) -> bool:
    """Whether the sequential test has decided, after k successes of n, that the probability exceeds
    p0."""
    level, wealth = exact(alpha), log_wealth(k, n, p0)
    return Number(lambda: wealth.enclose() + level.enclose().log()).proves_at_least(0.0)
