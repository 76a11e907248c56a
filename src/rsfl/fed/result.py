"""What a run produced, and what it had produced when it could not go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from rsfl.fed.client import Member
from rsfl.fed.ledger import Ledger

__all__ = ["Result", "RoundError", "reasons_of"]


@dataclass(frozen=True)
class Result:
    """What a run produced.

    Args:
        model: The global model after the last round: clipped if there is a clip, without noise, in
            evaluation mode.
        ledger: What each round did.
        models: The models that mixture clients ended with, by id; empty in other runs.
    """

    model: nn.Module = field(repr=False)
    ledger: Ledger = field(repr=False)
    models: Mapping[int, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> list[Mapping[str, float]]:
        """What ``evaluate`` returned after each round."""
        return [entry.metrics for entry in self.ledger.entries]


class RoundError(RuntimeError):
    """A round in which too few updates were left.

    Attributes:
        result: The run up to the last good round. Nothing is lost: the checkpoint holds it too.
    """

    def __init__(self, message: str, result: Result):
        super().__init__(message)
        self.result = result


def reasons_of(participants: Sequence[Member], reasons: Sequence[str]) -> str:
    """Who failed and why: ``"clients 1, 4, 5 were late; client 7 sent nothing"``."""
    clients: dict[str, list[int]] = {}
    for one, reason in zip(participants, reasons, strict=True):
        if reason:
            clients.setdefault(reason, []).append(one.id)
    return "; ".join(
        f"client{'s' * (len(ids) > 1)} {', '.join(map(str, ids[:5]))}"
        + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        + f" {reason}"
        for reason, ids in clients.items()
    )
