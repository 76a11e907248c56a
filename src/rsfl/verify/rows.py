"""The votes of a document, input by input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "rows_of", "whole"]


@dataclass(frozen=True)
class Row:
    """The votes on one input."""

    index: int
    n0: int
    selection: Mapping[int, int]
    n: int
    counts: Mapping[int, int]

    @property
    def chosen(self) -> int:
        """The class with most of the votes that select; the first of equals, as of none at all."""
        return max(self.selection, key=lambda label: (self.selection[label], -label), default=0)

    @property
    def successes(self) -> int:
        """Votes for the chosen class among those that bound it."""
        return self.counts.get(self.chosen, 0)

    @property
    def runner_up(self) -> int:
        """The most votes of any other class."""
        return max((v for label, v in self.counts.items() if label != self.chosen), default=0)


def rows_of(content: Mapping[str, Any]) -> list[Row]:
    """The votes of each input of a ballot or certificate.

    Raises:
        ValueError: They are no votes, or do not add up.
        KeyError, TypeError: Something is missing, or of another type.
    """
    names = ("index", "n0", "selection", "n", "counts")
    columns = [content[name] for name in names]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the columns {', '.join(names)} are not of one length")
    rows = []
    for index, n0, selection, n, counts in zip(*columns, strict=True):
        row = Row(index, n0, _votes(selection), n, _votes(counts))
        for cast, counted in ((row.n0, row.selection), (row.n, row.counts)):
            whole("votes", cast, 0, 2**53)
            for label, votes in counted.items():
                whole("a label", label, 0, content["classes"] - 1)
                whole("votes", votes, 0, cast)
            if sum(counted.values()) > cast:
                raise ValueError(f"input {row.index}: {sum(counted.values())} votes of {cast}")
        whole("an index", row.index, 0, 2**63)
        rows.append(row)
    return rows


def _votes(counted: Mapping[str, int]) -> dict[int, int]:
    found = {int(label): votes for label, votes in counted.items()}
    if len(found) < len(counted) or any(str(int(label)) != label for label in counted):
        raise ValueError(f"labels are not written as numbers once each: {sorted(counted)}")
    return found


def whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise ValueError where a value is no whole number of its range."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is no {name} from {low} to {high}")
