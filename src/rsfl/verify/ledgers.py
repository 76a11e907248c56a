"""The ledger of a federated run, read from the description of its format, and what it shows."""

import itertools
import struct
import zlib
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from rsfl.verify.conditions import broken_conditions
from rsfl.verify.findings import Finding

__all__ = ["check_ledger", "rounds_of"]

_TYPES = {"<i8": "q", "<f8": "d", "|b1": "?"}
_PLAIN = (
    "client",
    "weight",
    "lr",
    "input_norm",
    "momentum",
    "update_norm",
    "gap",
    "loss",
    "optimizer",
    "outcome",
    "reason",
)


def _column(document: Mapping[str, Any]) -> list[Any]:
    """The entries of a packed column, row by row."""
    if "texts" in document:
        return [document["texts"][code] for code in _column(document["codes"])]
    size = prod(document["shape"])
    raw = zlib.decompress(b64decode(document["data"], validate=True))
    return list(struct.unpack(f"<{size}{_TYPES[document['type']]}", raw))


def rounds_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a ledger, each with its participants and the registry of all clients.

    Raises:
        KeyError, TypeError, ValueError, IndexError: It holds none.
    """
    columns = {name: _column(one) for name, one in content["participants"].items()}
    everyone: list[dict[str, Any]] = []
    batch = sample = 0
    for place in range(len(columns["client"])):
        one = {name: columns[name][place] for name in _PLAIN}
        one["decay"] = columns["decay"][2 * place : 2 * place + 2]
        steps = columns["steps"][place]
        one["batch_sizes"] = columns["batch_sizes"][batch : batch + steps]
        drawn, batch = sum(one["batch_sizes"]), batch + steps
        one["samples"] = columns["samples"][sample : sample + drawn]
        sample += drawn * columns["sampled"][place]
        one["samples"] = one["samples"] if columns["sampled"][place] else None
        everyone.append(one)
    rounds, place = [], 0
    sizes = dict(content["sizes"])
    for settings, many in zip(content["rounds"], content["many"], strict=True):
        entries = everyone[place : place + many]
        rounds.append({**settings, "sizes": sizes, "participants": entries})
        place += many
    if (place, batch, sample) != tuple(
        len(columns[name]) for name in ("client", "batch_sizes", "samples")
    ):
        raise ValueError("columns and rounds are not of one length")
    return rounds


def check_ledger(subject: str, rounds: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What a ledger shows by itself: whether it is whole, and whether the theorem for one trained
    model applies to its run."""
    cut = [f"{one['index']}" for at, one in enumerate(rounds, 1) if one["index"] != at]
    torn = [
        f"{after['index']}"
        for before, after in itertools.pairwise(rounds)
        if before["passed_hash"] != after["sent_hash"]
    ]
    for wrong, text in (
        (cut, "rounds are missing: those of index {} stand in places of others"),
        (torn, "the rounds {} sent other weights than the rounds before them passed on"),
    ):
        if wrong:
            yield Finding(subject, "arithmetic", False, text.format(", ".join(wrong)))
    if not cut and not torn:
        chained = all(one["passed_hash"] for one in rounds)
        text = f"{len(rounds)} rounds, 1 to {len(rounds)}, "
        text += "each from the weights of the one before" if chained else "weights not hashed"
        yield Finding(subject, "arithmetic", True if chained else None, text)
    anyone = {"level": "removal", "clients": [], "at_most": 1}
    if broken := broken_conditions(rounds, anyone):
        more = f"; and {len(broken) - 1} more" if len(broken) > 1 else ""
        text = f"no bound on poisoning follows: {broken[0]}{more}"
        yield Finding(subject, "arithmetic", None, text)
