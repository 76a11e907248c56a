"""What a ledger shows that the theorem about one trained model does not allow."""

import itertools
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, TypeAlias

__all__ = ["Record", "broken_conditions", "drawn", "plain", "real_of"]

Record: TypeAlias = Mapping[str, Any]


_SLACK = 2.0**-40  # what sums and products of recorded floats may be off by


def real_of(value: Any) -> float:
    """A recorded number; files write infinity as a text."""
    return float(value)


def plain(one: Record) -> bool:
    """Whether a client's training is convex, and its steps do not expand: all else is unknown."""
    low, high = map(real_of, one["decay"])
    size, rate = real_of(one["input_norm"]), real_of(one["lr"])
    return (
        one["loss"] == "softmax cross-entropy"
        and one["optimizer"] == "sgd"
        and one["momentum"] == 0
        and low == high
        and size < inf
        and rate * (high + size * size / 2) <= 2 * (1 + _SLACK)
    )


def broken_conditions(rounds: Sequence[Record], threat: Record) -> list[str]:
    """What a ledger shows that the theorem does not allow, in words; none where it applies."""
    found = []

    def require(holds: bool, where: str, text: str) -> None:
        if not holds:
            found.append(f"{where}: {text}")

    require(bool(rounds), "the ledger", "it holds no round")
    at = [record["index"] for record in rounds]
    require(at == list(range(1, len(at) + 1)), "the ledger", f"its rounds are {at}, not 1, 2, ...")
    outside = set(threat.get("rounds") or ()) - set(at)
    require(not outside, "the threat", f"it attacks the rounds {sorted(outside)}")
    for record in rounds:
        where = f"round {record['index']}"
        total = sum(real_of(one["weight"]) for one in record["participants"])
        for name, wanted in (
            ("aggregator", "mean"),
            ("reject", "zero"),
            ("clip_fixed", True),
            ("dtype", "float64"),
        ):
            require(record[name] == wanted, where, f"{name} is {record[name]!r}, not {wanted!r}")
        head = record["model"] == "linear head" and record.get("features_hash")
        require(head or record["model"] == "linear", where, f"model is {record['model']!r}")
        by_data = threat["level"] in ("feature", "sample")
        known = not head or not by_data or threat.get("space") == "features"
        require(known, where, "it trained on features, and the threat is about inputs")
        require(record["weights_from"] != "clients", where, "weights are what clients report")
        require(abs(total - 1) <= 1e-12, where, f"weights sum to {total!r}")
        step = record["server_step"]
        require(0 < step <= 1, where, f"the server steps by {step!r}")
        for one in record["participants"]:
            known = plain(one) or real_of(record["update_clip"]) < inf
            if one["client"] not in _left_out(threat):
                require(known, where, f"client {one['client']} trains in another way, unclipped")
    for before, after in itertools.pairwise(rounds):
        passed, sent = before.get("passed_hash"), after.get("sent_hash")
        require(
            passed == sent, f"round {after['index']}", "it sent other weights than were passed on"
        )
    return found


def _left_out(threat: Record) -> Sequence[int]:
    return threat["clients"] if threat["level"] == "removal" else ()


def drawn(rounds: Sequence[Record], threat: Record) -> list[str]:
    """What another training from the same start may draw anew, in words; none where there is
    nothing."""
    found = []
    for record in rounds:
        where, sizes = f"round {record['index']}", record["sizes"]
        if record["weights_from"] != "registration":
            found.append(f"{where}: how many samples clients have is not registered")
        if real_of(record["noise_std"]) or real_of(record["noise_norm"]):
            found.append(f"{where}: noise")
        if {one["client"] for one in record["participants"]} != set(sizes):
            found.append(f"{where}: who takes part")
        attacked = record["index"] in (threat.get("rounds") or [record["index"]])
        for one in record["participants"]:
            client = one["client"]
            whole = set(one["batch_sizes"]) == {sizes.get(client)} and one["outcome"] != "absent"
            if not whole or not (plain(one) or (attacked and client in threat["clients"])):
                found.append(f"{where}: what client {client} trains on, or how")
    return found
