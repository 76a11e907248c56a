"""Classic logs of radii, without votes: could these numbers of votes have been cast at all?

The file has the columns ``idx label predict radius correct time``. Its radii are texts, rounded in
a way that it does not say, usually to nearest: then about half of them are above the certified
value.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from scipy import special

from rsfl._text import floored
from rsfl.verify.arithmetic import Number, exact, lower_probability, probability, radius
from rsfl.verify.findings import Finding

__all__ = ["Line", "published", "read_lines"]

_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
_SHOWN = 5  # lines that are named where there are more


@dataclass(frozen=True)
class Line:
    """One line of a log: its number in the file, what it predicts, and the radius as printed."""

    number: int
    predict: int
    radius: str


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The lines of a classic log.

    Raises:
        ValueError: A line is not of this format.
        OSError: The file cannot be read.
    """
    rows = Path(path).read_text().splitlines()
    if not rows or tuple(rows[0].split("\t")[: len(_COLUMNS)]) != _COLUMNS:
        raise ValueError(f"{path}, line 1: the columns must be {' '.join(_COLUMNS)}, tab-separated")
    lines = []
    for number, row in enumerate(rows[1:], 2):
        cells = row.split("\t")
        try:
            if not Decimal(cells[3]).is_finite() or Decimal(cells[3]) < 0:
                raise ValueError
            lines.append(Line(number, int(cells[2]), cells[3]))
        except (ArithmeticError, IndexError, ValueError):
            raise ValueError(
                f"{path}, line {number}: no prediction and radius, got {row!r}"
            ) from None
    return lines


class _Votes:
    """The votes that a radius needs, at one (law, n, alpha)."""

    def __init__(self, law: Mapping[str, Any], n: int, alpha: float) -> None:
        self.law, self.n, self.alpha = law, n, alpha
        self.least = lru_cache(maxsize=None)(self._least)

    def _enough(self, k: int, needed: Number) -> bool:
        """Whether k votes certify a radius that needs such a probability."""
        if not 0 <= k <= self.n:
            return k > self.n
        bound = lower_probability(k, self.n, self.alpha)
        return bound.compare(needed.ball(60)) <= 0

    def _least(self, reach: Fraction) -> int:
        """The least number of votes whose radius is at least this one; n + 1 if there is none."""
        needed = probability(self.law, exact(reach))
        k = self._guess(float(needed.ball().mid()))
        step = 1
        if self._enough(k, needed):
            while k >= 0 and self._enough(k - step, needed):
                k, step = k - step, 2 * step
            low, high = k - step, k
        else:
            while not self._enough(k + step, needed):
                k, step = k + step, 2 * step
            low, high = k, k + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._enough(middle, needed) else (middle, high)
        return min(high, self.n + 1)

    def _guess(self, p: float) -> int:
        """In floating point, where it may be wrong by some votes."""
        k = float(special.bdtrik(1 - self.alpha, self.n, p)) if 0 < p < 1 else 0.0
        return min(max(ceil(k) + 1, 0), self.n) if isfinite(k) else self.n


@dataclass(frozen=True)
class _Printed:
    """How a file prints: so many decimals, or so many significant digits."""

    decimals: int | None
    digits: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "_Printed":
        places = {-int(Decimal(text).as_tuple().exponent) for text in texts}
        digits = max(
            (len(Decimal(text).normalize().as_tuple().digits) for text in texts), default=3
        )
        return cls(places.pop() if len(places) == 1 else None, digits)

    def unit(self, text: str) -> Fraction:
        """One unit in the last place that is printed."""
        if self.decimals is not None:
            return Fraction(10) ** -self.decimals
        return Fraction(10) ** (Decimal(text).adjusted() - self.digits + 1)

    def __str__(self) -> str:
        if self.decimals is not None:
            return f"{self.decimals} decimals"
        return f"{self.digits} significant digits"


def _some(lines: Sequence[Line]) -> str:
    named = ", ".join(f"line {one.number} ({one.radius})" for one in lines[:_SHOWN])
    return named + (f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")


def published(
    path: str | os.PathLike[str], law: Mapping[str, Any], *, n: int, alpha: float
) -> list[Finding]:
    """What can be said of a log of radii without its votes.

    With R(k) the radius of k votes, a printed r with last unit u was floored from some k if r <=
    R(k) < r + u, and rounded to nearest if |R(k) - r| <= u / 2. Where only the second is possible,
    the printed radius is above the certified one, whatever the votes were.

    Args:
        path: The log.
        law: Name and parameters of the noise, as files of this library say them.
        n: Votes an input.
        alpha: Failure probability of each input.

    Returns:
        The findings; false are abstentions with a radius, radii that follow from no number of votes
        and radii above the certified value.
    """
    lines, name = read_lines(path), str(path)
    said = [one for one in lines if one.predict >= 0 and Fraction(one.radius) > 0]
    printed = _Printed.of([one.radius for one in said])
    votes = _Votes(law, n, alpha)
    neither, above, below, either = [], [], [], []
    expected = 0.0
    for one in said:
        r, u = Fraction(one.radius), printed.unit(one.radius)
        slack = r / 10**8  # a radius printed in full carries its program's rounding
        half, whole = max(u / 2, slack), max(u, slack)
        first, at, last, after = (votes.least(x) for x in (r - half, r, r + half, r + whole))
        down, nearest = at < after, first < last
        if nearest:
            expected += (min(max(at, first), last) - first) / (last - first)
        if down and nearest:
            either.append(one)
        elif down:
            below.append(one)
        elif nearest:
            above.append(one)
        else:
            neither.append(one)

    def finding(holds: bool | None, text: str) -> Finding:
        return Finding(name, "arithmetic", holds, text)

    most = floored(float(radius(law, lower_probability(n, n, alpha)).ball().mid()))
    abstained = [one for one in lines if one.predict < 0 and Fraction(one.radius) > 0]
    found = [
        finding(
            not abstained,
            f"{_some(abstained)}: a radius without a prediction"
            if abstained
            else f"{len(lines)} lines, {sum(one.predict < 0 for one in lines)} abstained, none "
            "of them with a radius",
        ),
        finding(
            not neither,
            f"{_some(neither)}: no number of votes gives this radius at alpha = {alpha:g}; all {n} "
            f"give {most}"
            if neither
            else f"{len(said)} radii, in {printed}: each follows from a number of votes of {n} at "
            f"alpha = {alpha:g}",
        ),
    ]
    if above:
        text = (
            f"{_some(above)}: above the certified value whatever the votes were, in "
            f"{len(above)} of {len(said)}"
        )
        if not below:
            text += f"; rounded to nearest, so that about {expected:.0f} are above it"
        found.append(finding(False, text))
    elif below or not said:
        found.append(finding(True, "radii were rounded down: none is above the certified value"))
    else:
        found.append(
            finding(
                None,
                f"rounded down or to nearest cannot be told apart; about {expected:.0f} of "
                f"{len(said)} are above the certified value if to nearest",
            )
        )
    return found
