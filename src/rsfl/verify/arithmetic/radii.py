"""Radii of all laws of noise, and the table of rounded noise."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from flint import arb, ctx

from rsfl.verify.arithmetic.number import Number, Real, complement, exact

__all__ = [
    "linf_radius",
    "normal_cdf",
    "normal_quantile",
    "probability",
    "radius",
    "total_variation",
]


def normal_quantile(p: arb) -> arb:
    """Phi^-1(p), enclosed; infinite at 0 and 1."""
    if p == 0 or p == 1:
        return arb.pos_inf() if p == 1 else -arb.pos_inf()
    root = arb(2).sqrt()
    return -root * (2 * p).erfcinv() if not p > 0.5 else root * (2 * (1 - p)).erfcinv()


def normal_cdf(z: arb) -> arb:
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
            return cost + normal_cdf(
                distance.enclose() / law["sigma"] + normal_quantile(0.5 + cost)
            )

        return Number(enclose)
    if family == "Gaussian":
        return Number(lambda: normal_cdf(distance.enclose() / law["sigma"]))
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
