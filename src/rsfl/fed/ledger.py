"""What a federated run did, kept for certificates: one entry a round, every registered client
accounted for."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, cast

from torch import Tensor

from rsfl import _document
from rsfl.bounds.records import Round

__all__ = ["Entry", "Ledger"]

_FORMAT = 1


def _texts(value: Any) -> Any:
    """The same with ``"inf"`` for an infinity, as for limits that are not set: JSON has no such
    number."""
    if isinstance(value, Mapping):
        return {key: _texts(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_texts(one) for one in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


@dataclass(frozen=True)
class Entry:
    """One round: the numbers that certificates read, and what else there is to keep.

    Args:
        round: The record that certificates read.
        shares: The weight that the aggregation rule ended up with for each participant that it was
            given, by id; empty for rules by coordinate. For the geometric median they depend on
            what the clients sent.
        metrics: What ``evaluate`` returned for the model of this round.
        updates: The updates (n, d) as they were averaged, in the order of ``round.participants``,
            if they were kept.
    """

    round: Round
    shares: Mapping[int, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    updates: Tensor | None = field(default=None, repr=False, compare=False)

    def to_numbers(self) -> dict[str, Any]:
        """All of it that JSON can hold: everything but the updates."""
        numbers = {
            "round": asdict(self.round),
            "shares": list(self.shares.items()),
            "metrics": dict(self.metrics),
        }
        return cast(dict[str, Any], _texts(numbers))

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any], updates: Tensor | None = None) -> "Entry":
        """The entry that `to_numbers` gave."""
        metrics = {name: float(value) for name, value in numbers["metrics"].items()}
        return cls(Round.from_dict(numbers["round"]), dict(numbers["shares"]), metrics, updates)

    def pack(self) -> dict[str, Any]:
        """The entry as JSON text and a tensor."""
        return {"numbers": json.dumps(self.to_numbers()), "updates": self.updates}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> "Entry":
        """The entry that `pack` gave."""
        return cls.from_numbers(json.loads(packed["numbers"]), packed["updates"])


@dataclass(frozen=True)
class Ledger:
    """All the rounds of a run.

    Args:
        sizes: The server's registry: number of samples of every client, by id. Weights come from it
            alone.
        excluded: Clients that were left out of the run.
        entries: One a round, in order.
        unusable: What was wrong with the samples of clients when they registered, by id, in words.
    """

    sizes: Mapping[int, int]
    excluded: tuple[int, ...] = ()
    entries: tuple[Entry, ...] = ()
    unusable: Mapping[int, str] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """Index of the first round that the ledger holds: 1, unless it was cut."""
        return self.entries[0].round.index if self.entries else 1

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The records that `rsfl.bounds.deviation` reads."""
        return tuple(entry.round for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ledger to a JSON file, whole and with a checksum: all of it but kept updates,
        every number exactly.

        Args:
            path: The file; one that is there is replaced.
        """
        content = {
            "sizes": list(self.sizes.items()),
            "excluded": list(self.excluded),
            "entries": [entry.to_numbers() for entry in self.entries],
        }
        _document.write(path, "ledger", _FORMAT, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ledger":
        """Read a ledger back.

        Args:
            path: A file that :meth:`save` wrote.

        Raises:
            ValueError: The file is not as it was written.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "ledger", _FORMAT)
        entries = tuple(Entry.from_numbers(numbers) for numbers in found["entries"])
        return cls(dict(found["sizes"]), tuple(found["excluded"]), entries)

    def fates(self, index: int) -> dict[int, str]:
        """What became of every registered client in a round, counted from 1.

        ``"used"``, ``"clipped"``, ``"rejected: why"``, ``"absent: why"``, ``"not sampled"`` or
        ``"excluded"``.
        """
        if not 1 <= index <= len(self.entries):
            raise ValueError(f"index must be a round from 1 to {len(self.entries)}, got {index!r}")
        fates = {
            client: "excluded" if client in self.excluded else "not sampled"
            for client in self.sizes
        }
        for one in self.entries[index - 1].round.participants:
            fates[one.client] = f"{one.outcome}: {one.reason}" if one.reason else one.outcome
        return fates
