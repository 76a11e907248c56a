"""Exact real numbers, as what encloses them."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import isnan
from typing import TypeAlias

from flint import arb, ctx

__all__ = ["Number", "Real", "complement", "exact"]

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
