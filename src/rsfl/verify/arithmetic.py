"""The numbers of a certificate a second time, in ball arithmetic: every result is enclosed, and no
code is shared with :mod:`rsfl.bounds`.

A :class:`Number` is an exact real that can be enclosed as tightly as is asked. So the question
whether a claimed float lies below or above it has one answer, which no rounding can turn: the
precision grows until the two are told apart.

Needs python-flint: ``pip install 'rsfl[verify]'``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import inf, isnan
from typing import Any, Literal, TypeAlias

try:
    from flint import acb, arb, ctx
except ImportError as error:
    raise ImportError("rsfl.verify needs python-flint: pip install 'rsfl[verify]'") from error

__all__ = [
    "Confidence",
    "Number",
    "Real",
    "affine",
    "binomial_tail",
    "complement",
    "crfl_divergence",
    "crfl_radius",
    "decides",
    "exact",
    "group_votes",
    "kl_budget",
    "lecuyer_radius",
    "length",
    "li_radius",
    "linear_votes",
    "linf_radius",
    "log_wealth",
    "lower_probability",
    "margin_radius",
    "normal_quantile",
    "probability",
    "radius",
    "top_two_p_value",
    "total_variation",
    "upper_probability",
]

Confidence: TypeAlias = Literal["clopper-pearson", "hoeffding"]

_FIRST, _LAST = 96, 6144  # bits of the first attempt to tell two numbers apart, and of the last


@dataclass(frozen=True)
class Number:
    """An exact real number, as what encloses it at the working precision."""

    enclose: Callable[[], arb]

    def ball(self, bits: int = 53) -> arb:
        """A ball around the number, of about so many right bits."""
        precision = max(_FIRST, 2 * bits)
        while True:
            with ctx.workprec(precision):
                found = self.enclose()
            if precision >= _LAST or not found.is_finite() or found.rel_accuracy_bits() >= bits:
                return found
            precision *= 2

    def compare(self, claim: "float | arb") -> int:
        """The sign of ``claim`` minus the number; 0 where thousands of bits do not tell them apart.

        NaN is above every number.
        """
        if isinstance(claim, float) and isnan(claim):
            return 1
        claimed = arb(claim)
        precision = _FIRST
        while precision <= _LAST:
            with ctx.workprec(precision):
                found = self.enclose()
                if claimed < found:
                    return -1
                if claimed > found:
                    return 1
                if claimed == found:
                    return 0
            precision *= 2
        return 0

    def proves_at_least(self, claim: float) -> bool:
        """Whether the number is at least ``claim``."""
        return self.compare(claim) <= 0

    def proves_at_most(self, claim: float) -> bool:
        """Whether the number is at most ``claim``; NaN claims nothing."""
        return not isnan(claim) and self.compare(claim) >= 0

    def __str__(self) -> str:
        found = self.ball()
        return f"{float(found.mid()):.17g}" if found.is_finite() else str(float(found))


Real: TypeAlias = float | int | Fraction | Number


def exact(value: Real) -> Number:
    """A float, whole number or fraction as the number that it is."""
    if isinstance(value, Number):
        return value
    if isinstance(value, Fraction):
        return Number(lambda: arb(value.numerator) / value.denominator)
    ball = arb(value)
    return Number(lambda: ball)


# ------------------------------------------------------------------------------- counts of votes


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


@dataclass(frozen=True)
class _Complement(Number):
    """1 minus a number, compared through it: 1 - claim is exact."""

    other: Number

    def compare(self, claim: "float | arb") -> int:
        if isinstance(claim, float) and isnan(claim):
            return 1
        with ctx.workprec(_LAST):
            rest = 1 - arb(claim)
        return -self.other.compare(rest)


def complement(number: Number) -> Number:
    """1 minus the number."""
    return _Complement(lambda: 1 - number.enclose(), number)


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


# ------------------------------------------------------------------------------------------ radii


def normal_quantile(p: arb) -> arb:
    """Phi^-1(p), enclosed; infinite at 0 and 1."""
    if p == 0 or p == 1:
        return arb.pos_inf() if p == 1 else -arb.pos_inf()
    root = arb(2).sqrt()
    return -root * (2 * p).erfcinv() if not p > 0.5 else root * (2 * (1 - p)).erfcinv()


def _normal(z: arb) -> arb:
    """Phi(z)."""
    return (-z / arb(2).sqrt()).erfc() / 2


def _gaussian(sigma: float, a: arb, b: arb) -> arb:
    if a == 1 or b == 0:
        return arb.pos_inf()
    return arb(sigma) / 2 * (normal_quantile(a) - normal_quantile(b))


def _uniform(half_width: float, a: arb, b: arb) -> arb:
    return arb(half_width) * (a - b)


def _laplace(scale: float, a: arb, b: arb) -> arb:
    if b == 0:
        return arb.pos_inf()
    by_ratio = (a / b).log() / 2 if a > 0 else arb(0)
    return arb(scale) * by_ratio.max(-(1 - a + b).log())


_DRAWN = {  # how pixels, and the parameters of each deformation, are drawn
    "PixelGaussian": "Gaussian",
    "PixelUniform": "Uniform",
    "PixelLaplace": "Laplace",
    "Rotation": "Uniform",
    "Scaling": "Uniform",
    "Translation": "Gaussian",
    "Affine": "Gaussian",
    "DCT": "Gaussian",
    "PixelFlow": "Gaussian",
    "ParameterGaussian": "Gaussian",
}
_FORMULA: dict[str, tuple[str, Callable[[float, arb, arb], arb]]] = {
    "Gaussian": ("sigma", _gaussian),
    "Uniform": ("half_width", _uniform),
    "Laplace": ("scale", _laplace),
}


def radius(law: Mapping[str, Any], p_a: Real, p_b: Real | None = None, *, dim: int = 1) -> Number:
    """The radius that a law of noise gives for bounds on the two leading probabilities.

    Args:
        law: Its name and parameters, as files say them.
        p_a: Lower bound on the probability of the label.
        p_b: Upper bound on that of every other class; None for 1 - p_a.
        dim: Number of coordinates of one input's noise.

    Returns:
        The exact radius: 0 where p_a <= p_b.

    Raises:
        ValueError: The law is none of those whose radius is known here.
    """
    name = law["name"]
    a = exact(p_a)
    b = complement(a) if p_b is None else exact(p_b)
    if name == "RoundedGaussian":
        return _rounded_radius(law, a, None if p_b is None else b, dim)
    family = _DRAWN.get(name, name)
    if family not in _FORMULA:
        raise ValueError(f"law {name!r} is none of {', '.join([*_FORMULA, *_DRAWN])}")
    parameter, formula = _FORMULA[family]

    def enclose() -> arb:
        p, q = a.enclose(), b.enclose()
        return arb(0) if p <= q else formula(law[parameter], p, q).max(arb(0))

    return Number(enclose)


def probability(law: Mapping[str, Any], reach: Real, *, dim: int = 1) -> Number:
    """The probability at which :func:`radius`, with 1 - p_a for the others, is ``reach``.

    Args:
        law: Its name and parameters.
        reach: A radius, at least 0.
        dim: Number of coordinates of one input's noise.
    """
    distance, family = exact(reach), _DRAWN.get(law["name"], law["name"])
    if family == "RoundedGaussian":
        paid = total_variation(law["sigma"], law["levels"]) * dim

        def enclose() -> arb:
            cost = arb(paid.numerator) / paid.denominator
            return cost + _normal(distance.enclose() / law["sigma"] + normal_quantile(0.5 + cost))

        return Number(enclose)
    if family == "Gaussian":
        return Number(lambda: _normal(distance.enclose() / law["sigma"]))
    if family == "Uniform":
        return Number(lambda: ((1 + distance.enclose() / law["half_width"]) / 2).min(arb(1)))
    if family == "Laplace":
        return Number(lambda: 1 - (-distance.enclose() / law["scale"]).exp() / 2)
    raise ValueError(f"law {law['name']!r} has a radius that is not inverted here")


def linf_radius(l2_radius: Real, dim: int) -> Number:
    """The l-infinity radius within an l2 radius."""
    inner = exact(l2_radius)
    return Number(lambda: inner.enclose() / arb(dim).sqrt())


@lru_cache(maxsize=64)
def total_variation(sigma: float, levels: int) -> Fraction:
    """A bound on how far, in total variation, one coordinate of tabled noise is from the rounded
    Gaussian.

    The table holds ``P[|N| >= m - 1/2]`` in units of 2^-62, each right to one unit, as far as one
    is left; the mass of each whole number is half a difference of two neighbours, for either sign.
    Summed over all numbers the errors are at most one unit an entry, and less than one beyond.
    """
    with ctx.workprec(256):
        step = arb(sigma) * (levels - 1) * arb(2).sqrt()

        def left(m: int) -> bool:
            """Whether more than half a unit is left from m - 1/2 on."""
            return bool((arb(2 * m - 1) / 2 / step).erfc() * 2**62 >= 0.5)

        low, high = 0, 1
        while left(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if left(middle) else (low, middle)
    return Fraction(low + 1, 2**62)


def _rounded_radius(law: Mapping[str, Any], p_a: Number, p_b: Number | None, dim: int) -> Number:
    """The Gaussian radius less what the table pays, at both ends of the path between two inputs.

    With a level c between the classes, the label stays above c + paid within the first distance and
    every other class below c - paid within the second. The best c makes them equal; without a bound
    on the others c is 1/2.
    """
    sigma = law["sigma"]
    paid = total_variation(sigma, law["levels"]) * dim

    def both(c: arb, a: arb, b: arb) -> tuple[arb, arb]:
        cost = arb(paid.numerator) / paid.denominator
        ends = [(a - cost, c + cost), (c - cost, b + cost)]
        first, second = (
            sigma * (normal_quantile(high) - normal_quantile(low))
            if high > 0 and low < 1
            else arb(-1)
            for high, low in ends
        )
        return first, second

    def enclose() -> arb:
        a = p_a.enclose()
        if p_b is None:
            return both(arb(0.5), a, 1 - a)[0].max(arb(0))
        b = p_b.enclose()
        if not a > b or b == 0 or a == 1:
            low, high = arb(0), arb(1)
        else:
            low, high = b, a
        for _ in range(2 * ctx.prec):
            c = ((low + high) / 2).mid()
            first, second = both(c, a, b)
            if first > second:
                low = c
            elif first < second:
                high = c
            else:
                break
        # One of the two falls in c and the other grows: their best meeting lies between them.
        return first.union(second).max(arb(0))

    return Number(enclose)


# -------------------------------------------------------- older radii, for comparison only


def _highest(value: Callable[[arb], arb], low: arb, high: arb) -> Number:
    """A curve with one hill at its top, as nearly as it is found: never above its supremum."""

    def at(x: arb) -> arb:
        found = value(x)
        return found.mid() if found.is_finite() else arb(0)

    with ctx.workprec(160):
        nodes = [(low + (high - low) * i / 256).mid() for i in range(257)]
        best = max(range(257), key=lambda i: float(at(nodes[i])))
        left, right = nodes[max(best - 1, 0)], nodes[min(best + 1, 256)]
        golden = (arb(5).sqrt() - 1) / 2
        for _ in range(160):
            inner, outer = (right - golden * (right - left)), (left + golden * (right - left))
            if at(inner.mid()) >= at(outer.mid()):
                right = outer.mid()
            else:
                left = inner.mid()
        top = ((left + right) / 2).mid()
    return Number(lambda: value(top).max(arb(0)))


def lecuyer_radius(p_a: Real, p_b: Real, sigma: float) -> Number:
    """A radius just below the supremum of Lecuyer et al.'s, in the form of Cohen et al. 2019."""
    a, b = exact(p_a), exact(p_b)

    def value(beta: arb) -> arb:
        room = a.enclose() - (2 * beta).exp() * b.enclose()
        if not room > 0 or not beta > 0:
            return arb(0)
        return arb(sigma) * beta / (2 * (arb(1.25) * (1 + beta.exp()) / room).log()).sqrt()

    with ctx.workprec(160):
        p, q = a.enclose(), b.enclose()
        if not p > q:
            return exact(0)
        high = arb(1) if q == 0 else ((p / q).log() / 2).min(arb(1))
    return _highest(value, arb(0), high)


def li_radius(p_a: Real, p_b: Real, sigma: float) -> Number:
    """A radius just below the supremum of Li et al.'s, in the form of Cohen et al. 2019."""
    a, b = exact(p_a), exact(p_b)
    with ctx.workprec(160):
        p, q = a.enclose(), b.enclose()
        if not p > q:
            return exact(0)
        if p == 1 and q == 0:
            return Number(arb.pos_inf)

    def value(log_order: arb) -> arb:
        order = log_order.exp()  # alpha - 1
        p, q = a.enclose(), b.enclose()
        # At p_B = 0 the mean of order below 0 is 0.
        mean = (
            arb(0) if q == 0 else (((-order * p.log()).exp() + (-order * q.log()).exp()) / 2).log()
        )
        mean = arb(0) if q == 0 else (-mean / order).exp()
        inside = 1 - p - q + 2 * mean
        if not inside > 0:
            return arb(0)
        drop = -2 / (1 + order) * inside.log()
        return arb(sigma) * drop.sqrt() if drop > 0 else arb(0)

    return _highest(value, arb(-30), arb(12))


# ---------------------------------------------------------------------- CRFL as it was published


def kl_budget(p_a: Real, p_b: Real | None = None) -> Number:
    """The divergence below which the published theorem keeps a vote."""
    a = exact(p_a)
    b = complement(a) if p_b is None else exact(p_b)

    def enclose() -> arb:
        p, q = a.enclose(), b.enclose()
        if p <= q:
            return arb(0)
        if p == 1 and q == 0:
            return arb.pos_inf()
        return -(1 - (p.sqrt() - q.sqrt()) ** 2).log()

    return Number(enclose)


def _divergence_factor(
    attackers: Sequence[Sequence[float]],
    magnitudes: Sequence[float],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]],
) -> arb:
    total = arb(0)
    for factors, magnitude in zip(attackers, magnitudes, strict=True):
        reach = arb(lipschitz) * magnitude
        for factor in factors:
            reach *= factor
        total += reach**2
    total *= 2 * len(attackers)
    total /= arb(sigma) ** 2
    for rho, noise in later:
        if rho != inf:
            total *= (arb(rho) / noise / arb(2).sqrt()).erf()
    return total


def crfl_divergence(
    magnitudes: Sequence[float],
    attackers: Sequence[Sequence[float]],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]] = (),
) -> Number:
    """Theorem 2 of CRFL.

    Args:
        magnitudes: Norm of each attacker's backdoor.
        attackers: Of each: its weight, scale, steps, learning rate and poisoned share.
        lipschitz: The constant of the loss gradient in the data.
        sigma: Noise of the attacked round.
        later: (rho, sigma) of each later round.
    """
    return Number(lambda: _divergence_factor(attackers, magnitudes, lipschitz, sigma, later))


def crfl_radius(
    p_a: Real,
    p_b: Real | None,
    attackers: Sequence[Sequence[float]],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]] = (),
) -> Number:
    """Corollary 1 of CRFL; arguments as for :func:`crfl_divergence`."""
    budget = kl_budget(p_a, p_b)

    def enclose() -> arb:
        allowed = budget.enclose()
        factor = _divergence_factor(attackers, [1.0] * len(attackers), lipschitz, sigma, later)
        if allowed == 0:
            return arb(0)
        return arb.pos_inf() if factor == 0 else (allowed / factor).sqrt()

    return Number(enclose)


# ------------------------------------------------------------------------ linear models and groups


def affine(weights: Sequence[float], x: Sequence[float], bias: float) -> Number:
    """The exact value of an affine map with these coefficients."""

    def enclose() -> arb:
        total = arb(bias)
        for weight, value in zip(weights, x, strict=True):
            total += arb(weight) * value
        return total

    return Number(enclose)


def length(x: Sequence[float]) -> Number:
    """The exact l2 norm of a vector."""
    return Number(lambda: sum((arb(value) ** 2 for value in x), arb(0)).sqrt())


def margin_radius(logits: Sequence[Real], input_norm: Real) -> Number:
    """The distance to the closest parameters of a linear model with another label.

    Args:
        logits: The exact logits of one input.
        input_norm: The exact norm of (x, 1).
    """
    values, norm = [exact(value) for value in logits], exact(input_norm)

    def enclose() -> arb:
        found = [value.enclose() for value in values]
        gaps = []
        for at, first in enumerate(found):
            others = [first - other for i, other in enumerate(found) if i != at]
            gaps.append(_fold(arb.min, others))
        # The label's smallest lead; every other class has a negative one.
        lead = _fold(arb.max, gaps)
        return lead.max(arb(0)) / (arb(2).sqrt() * norm.enclose())

    return Number(enclose)


def _fold(operation: Callable[[arb, arb], arb], values: Sequence[arb]) -> arb:
    total = values[0]
    for value in values[1:]:
        total = operation(total, value)
    return total


def linear_votes(logits: Sequence[float], input_norm: float, sigma: float) -> list[Number]:
    """The probability of each class of a linear model under Gaussian noise on its parameters.

    Args:
        logits: Logits of one input.
        input_norm: Norm of (x, 1).
        sigma: Standard deviation of the noise.
    """

    def vote(label: int) -> Number:
        def enclose() -> arb:
            spread = arb(sigma) * input_norm
            leads = [
                (arb(logits[label]) - other) / spread
                for i, other in enumerate(logits)
                if i != label
            ]

            def integrand(t: acb, _: bool) -> acb:
                product = (-t * t / 2).exp() / (2 * acb.pi()).sqrt()
                for lead in leads:
                    product *= (-(t + lead) / acb(2).sqrt()).erfc() / 2
                return product

            reach = arb(40)  # beyond it the density leaves less than 1e-349
            found = acb.integral(integrand, -reach, reach).real
            return found + (_normal(-reach) * 2 * arb(0.5, 0.5))

        return Number(enclose)

    return [vote(label) for label in range(len(logits))]


def group_votes(votes: Sequence[int]) -> tuple[int, int]:
    """The label of a vote among groups, and the most groups that may be replaced by any others
    without changing it, by trying.

    Args:
        votes: Votes of the groups for each label.
    """

    def winner(counts: Sequence[int]) -> int:
        return max(range(len(counts)), key=lambda label: (counts[label], -label))

    label = winner(votes)
    for replaced in range(1, votes[label] + 1):
        for rival in range(len(votes)):
            moved = list(votes)
            moved[label] -= replaced
            moved[rival] += replaced
            if rival != label and winner(moved) != label:
                return label, replaced - 1
    return label, votes[label]
