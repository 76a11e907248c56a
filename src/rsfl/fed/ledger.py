"""What a federated run did, kept for certificates: one entry a round, every registered client
accounted for."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from rsfl import _document
from rsfl.bounds import Participant, Round, columns_of, participants_of
from rsfl.fed.columns import packed, unpacked

__all__ = ["Entry", "Ledger"]

_FORMAT = 2


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

    def pack(self) -> dict[str, Any]:
        """The entry as JSON text and a tensor."""
        return {"numbers": json.dumps(_to_columns([self])), "updates": self.updates}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> "Entry":
        """The entry that `pack` gave."""
        (entry,) = _from_columns(json.loads(packed["numbers"]), [packed["updates"]])
        return entry


def _to_columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """All that JSON can hold, everything but the updates. What there is for each participant is a
    column through all the rounds: records one by one take ten times the room and the time."""
    names = [field.name for field in fields(Round) if field.name != "participants"]
    everyone = [one for entry in entries for one in entry.round.participants]
    return {
        "rounds": [
            {name: _text(getattr(entry.round, name)) for name in names} for entry in entries
        ],
        "metrics": [
            {name: _text(value) for name, value in entry.metrics.items()} for entry in entries
        ],
        "many": [len(entry.round.participants) for entry in entries],
        "participants": {name: packed(column) for name, column in columns_of(everyone).items()},
        "shared": [len(entry.shares) for entry in entries],
        "shares": {
            "client": packed(np.array([id_ for entry in entries for id_ in entry.shares])),
            "share": packed(np.array([one for entry in entries for one in entry.shares.values()])),
        },
    }


def _from_columns(found: Mapping[str, Any], updates: Sequence[Tensor | None]) -> tuple[Entry, ...]:
    """The entries that `_to_columns` was given."""
    everyone = participants_of({name: unpacked(one) for name, one in found["participants"].items()})
    ids, shares = (unpacked(found["shares"][name]).tolist() for name in ("client", "share"))
    entries, place, shared = [], 0, 0
    for number, settings in enumerate(found["rounds"]):
        until, upto = place + found["many"][number], shared + found["shared"][number]
        entries.append(
            Entry(
                _round(settings, everyone[place:until]),
                dict(zip(ids[shared:upto], shares[shared:upto], strict=True)),
                {name: float(value) for name, value in found["metrics"][number].items()},
                updates[number],
            )
        )
        place, shared = until, upto
    if (place, shared) != (len(everyone), len(ids)):
        raise ValueError(f"the rounds hold {place} participants, the columns {len(everyone)}")
    return tuple(entries)


def _text(value: Any) -> Any:
    """``"inf"`` for an infinity, as for limits that are not set: JSON has no such number."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _round(settings: Mapping[str, Any], participants: tuple[Participant, ...]) -> Round:
    return Round.from_dict({**settings, "participants": participants})


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
            "unusable": list(self.unusable.items()),
            **_to_columns(self.entries),
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
        try:
            entries = _from_columns(found, [None] * len(found["rounds"]))
            unusable = dict(found["unusable"])
            return cls(dict(found["sizes"]), tuple(found["excluded"]), entries, unusable)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path} cannot be read as a ledger: {error}") from error

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
