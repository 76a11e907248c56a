"""Slow and independent ways to the same numbers: mpmath and brute force."""

from fractions import Fraction

import mpmath as mp

DIGITS = 60
mp.mp.dps = DIGITS  # for all the arithmetic that tests do on the results


def binomial_tail(k: int, n: int, p: float) -> mp.mpf:
    """P[Bin(n, p) >= k] to about 50 digits, from a series of the incomplete beta function without
    cancellation."""
    if k <= 0:
        return mp.mpf(1)
    with mp.workdps(DIGITS):
        x = mp.mpf(p)
        if x == 0 or x == 1:
            return mp.mpf(x == 1)
        # the series is quick in the smaller of x and 1 - x
        return _tail_series(k, n - k + 1, x) if p <= 0.5 else 1 - _tail_series(n - k + 1, k, 1 - x)


def _tail_series(a: int, b: int, x: mp.mpf) -> mp.mpf:
    """I_x(a, b) = x^a (1-x)^b / (a B(a, b)) * sum of positive terms, in fixed point."""
    scale = 10**DIGITS
    ratio = int(x * mp.mpf(2) ** 256)
    term = total = scale
    i = 0
    while term > 0:
        term = term * (a + b + i) * ratio // ((a + 1 + i) << 256)
        total += term
        i += 1
    log = (
        a * mp.log(x) + b * mp.log1p(-x) + mp.loggamma(a + b) - mp.loggamma(a + 1) - mp.loggamma(b)
    )
    return mp.exp(log) * total / scale


def normal_quantile(p: float) -> mp.mpf:
    """Phi^-1(p), by Newton steps on 60 digits from where float64 left off."""
    from scipy.special import ndtri

    with mp.workdps(DIGITS):
        p_ = mp.mpf(p)
        low = p_ < mp.mpf("0.5")
        q = p_ if low else 1 - p_
        if q == mp.mpf("0.5"):
            return mp.mpf(0)
        z = mp.mpf(float(ndtri(float(q))))
        for _ in range(3):
            z -= (mp.erfc(-z / mp.sqrt(2)) / 2 - q) / mp.npdf(z)
        return z if low else -z


def log_wealth(k: int, n: int, p0: float) -> mp.mpf:
    """The mixture likelihood ratio by integrating over the prior: none of the code's special
    functions."""
    with mp.workdps(25):
        p0 = mp.mpf(p0)

        def integrand(u: mp.mpf) -> mp.mpf:  # p = 1 - u^2: no singularity at p = 1
            likelihood = k * (mp.log1p(-u * u) - mp.log(p0))
            if n > k:
                likelihood += (n - k) * (2 * mp.log(u) - mp.log1p(-p0))
            return mp.exp(likelihood) / mp.sqrt(1 - u * u)

        # Intervals around the peak, as wide as it is: the quadrature of each then has its digits.
        end = mp.sqrt(1 - p0)
        peak = min(end, mp.sqrt(1 - mp.mpf(k) / max(n, 1)))
        width = 1 / mp.sqrt(4 * max(n, 1))
        inner = (peak + j * width for j in (-12, -6, -3, -1, 0, 1, 3, 6, 12))
        cuts = [mp.mpf(0), *(cut for cut in inner if 0 < cut < end), end]
        return mp.log(mp.quad(integrand, cuts) / mp.asin(end))


def binomial_pmf(n: int, p: Fraction) -> list[Fraction]:
    """The exact probabilities of Bin(n, p)."""
    pmf = [Fraction(1)]
    for _ in range(n):
        pmf = [a * (1 - p) + b * p for a, b in zip([*pmf, 0], [0, *pmf], strict=True)]
    return pmf
