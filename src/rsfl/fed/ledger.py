"""What a federated run did, kept for certificates: one entry a round, every registered client accounted for."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from rsfl.bounds.records import Round

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True)
class Entry:
    """One round: the numbers that certificates read, and what else there is to keep.

    Args:
        round: The record that certificates read.
        shares: The weight that the aggregation rule ended up with for each participant that it was given, by id; empty
            for rules by coordinate. For the geometric median they depend on what the clients sent.
        metrics: What ``evaluate`` returned for the model of this round.
        updates: The updates (n, d) as they were averaged, in the order of ``round.participants``, if they were kept.
    """

    round: Round
    shares: Mapping[int, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    updates: Tensor | None = field(default=None, repr=False, compare=False)

    def pack(self) -> dict[str, Any]:
        """The entry as JSON text and a tensor."""
        numbers = {"round": asdict(self.round), "shares": list(self.shares.items()), "metrics": dict(self.metrics)}
        return {"numbers": json.dumps(numbers), "updates": self.updates}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> "Entry":
        """The entry that `pack` gave."""
        numbers = json.loads(packed["numbers"])
        shares = dict(numbers["shares"])
        return cls(Round.from_dict(numbers["round"]), shares, numbers["metrics"], packed["updates"])


@dataclass(frozen=True)
class Ledger:
    """All the rounds of a run.

    Args:
        sizes: The server's registry: number of samples of every client, by id. Weights come from it alone.
        excluded: Clients that were left out of the run.
        entries: One a round, in order.
    """

    sizes: Mapping[int, int]
    excluded: tuple[int, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The records that `rsfl.bounds.deviation` reads."""
        return tuple(entry.round for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def fates(self, index: int) -> dict[int, str]:
        """What became of every registered client in a round, counted from 1.

        ``"used"``, ``"clipped"``, ``"rejected: why"``, ``"absent: why"``, ``"not sampled"`` or ``"excluded"``.
        """
        if not 1 <= index <= len(self.entries):
            raise ValueError(f"index must be a round from 1 to {len(self.entries)}, got {index!r}")
        fates = {client: "excluded" if client in self.excluded else "not sampled" for client in self.sizes}
        for one in self.entries[index - 1].round.participants:
            fates[one.client] = f"{one.outcome}: {one.reason}" if one.reason else one.outcome
        return fates
