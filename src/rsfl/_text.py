"""Numbers as text that promise no more than they are, floored or raised, and tables of them."""

import html
import math
from collections.abc import Sequence

__all__ = ["floored", "lined", "raised", "tabled"]


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


def lined(
    heading: str, rows: Sequence[Sequence[str]], closing: str, *, width: int | None = 10
) -> str:
    """A table of a certificate as lines of text: columns of one width, or as wide as they need."""
    needed = (max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    widths = [width or least for least in needed]

    def line(row: Sequence[str]) -> str:
        return "".join(f"{cell:>{wide}}" for cell, wide in zip(row, widths, strict=True))

    return "\n".join([heading, *map(line, rows), closing])


def tabled(heading: str, rows: Sequence[Sequence[str]], closing: str) -> str:
    """A table of a certificate as HTML."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return (
        f"<p>{html.escape(heading)}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table><p>{html.escape(closing)}</p>"
    )
