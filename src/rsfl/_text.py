"""Numbers as text that promise no more than they are: floored, or raised."""

import math

__all__ = ["floored", "raised"]


def floored(value: float, digits: int = 4) -> str:
    """``value`` as text, cut to a number of decimals downward: a printed radius is a certified
    radius. What was read from such a text is printed as it was."""
    if not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 2**53:  # a whole number: nothing is cut
        return f"{value:.{digits}f}"
    steps = math.floor(value * 10**digits) + 1
    while float(text := f"{steps / 10**digits:.{digits}f}") > value:
        steps -= 1
    return text


def raised(value: float, digits: int = 4) -> str:
    """``value`` as text, cut to a number of decimals upward: a printed upper bound is an upper
    bound."""
    return f"{0.0 - float(floored(-value, digits)):.{digits}f}"
