"""How far a threat can have moved a federated model, from a ledger's numbers: the recursion of "A
certificate for one trained model" a second time, client by client in ball arithmetic.

No code is shared with :mod:`rsfl.bounds`; the numbers of equations are those of the documentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from flint import arb

from rsfl.verify.arithmetic import Number
from rsfl.verify.conditions import Record, plain, real_of

__all__ = ["deviation"]

_OVERFLOW = 1e300  # where logits may leave float64, and a training fail


def _root2() -> arb:
    return arb(2).sqrt()


def _smaller(*values: arb) -> arb:
    finite = [one for one in values if one.is_finite()]
    found = finite[0] if finite else arb.pos_inf()
    for one in finite[1:]:
        found = found.min(one)
    return found


def _larger(*values: arb) -> arb:
    found = values[0]
    for one in values[1:]:
        found = found.max(one)
    return found


def _beyond(value: arb, limit: float) -> bool:
    """Whether a value may be above a limit."""
    return limit < inf and not value <= limit


def _scaled(factor: float, value: arb) -> arb:
    """A factor times a bound that may be infinite: nothing times anything is nothing."""
    return factor * value if factor else arb(0)


def _largest_sum(values: Sequence[arb], most: int) -> arb:
    """The sum of the largest few, enclosed: the largest lower ends against the largest upper
    ones."""
    ends = (
        sorted((end(one) for one in values), reverse=True)[:most] for end in (arb.lower, arb.upper)
    )
    low, high = (sum(few, arb(0)) for few in ends)
    return low.union(high)


@dataclass
class _Client:
    """One participant of one round, and what its own training can do."""

    record: Record
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        one = self.record
        self.plain = plain(one)
        self.weight, self.update = arb(real_of(one["weight"])), arb(real_of(one["update_norm"]))
        self.gap, self.outcome = arb(real_of(one["gap"])), one["outcome"]
        self.sizes = one["batch_sizes"]
        steps = range(len(self.sizes))
        if not self.plain:
            self.kappa, self.slope = arb(1), arb.pos_inf()
            return
        rate, decay, size = (
            arb(real_of(x)) for x in (one["lr"], one["decay"][1], one["input_norm"])
        )
        self.rate, self.size = rate, size
        smoothness = size * size / 2
        # Eq. (1): the Lipschitz constant of a step; (2): that of an update.
        step = abs(1 - rate * decay).max(abs(1 - rate * (decay + smoothness)))
        kappa = step ** len(self.sizes)
        used = self.outcome in ("used", "clipped")
        self.kappa = kappa if used else kappa.max(arb(1))
        self.left = [step ** (len(self.sizes) - 1 - j) for j in steps]
        by_gradients = rate * (decay + smoothness) * sum(self.left, arb(0))
        self.slope = by_gradients.min(1 + kappa)
        self.kept = [abs(1 - rate * decay) ** j for j in steps]
        self.pull = abs(1 - (1 - rate * decay) ** len(self.sizes))
        self.push = rate * _root2() * size * sum(self.kept, arb(0))

    def honest(self, sent: arb) -> arb:
        """Eq. (5): how long an honest update from weights of that norm can be."""
        return self.pull * sent + self.push if self.plain else arb.pos_inf()

    def drift(self, distance: arb) -> arb:
        """How far apart two honest updates can be whose weights are."""
        return self.slope * distance if self.plain else arb.pos_inf()


@dataclass
class _Run:
    """Where the two runs stand before a round."""

    record: Record
    distance: arb
    reach: float
    clients: list[_Client]

    def __post_init__(self) -> None:
        record = self.record
        self.update_clip = real_of(record["update_clip"])
        self.reject_norm = real_of(record["reject_norm"])
        self.room = min(self.update_clip, self.reject_norm)
        self.broadcast = arb(real_of(record["broadcast_norm"]))
        other = self.broadcast + self.distance
        if self.reach < inf:
            other = other.min(arb(self.reach))
        self.sent = self.broadcast.max(other)
        self.step = arb(real_of(record["server_step"]))

    def followed(self, one: _Client) -> tuple[arb, arb]:
        """Eq. (4): what a client that keeps to the protocol takes the distance to, as factor and
        term."""
        longest = honest = one.honest(self.sent)
        drift = one.drift(self.distance)
        if one.outcome != "clipped":
            longest = _smaller(honest, one.update + drift)
        odd = one.outcome in ("clipped", "rejected") or not one.plain
        absent = one.outcome == "absent" and one.plain  # in both runs
        if absent or not (odd or _beyond(longest, self.room)):
            return one.kappa, arb(0)
        short = _smaller(honest, arb(self.room))
        apart = _smaller(drift, one.update + short)
        if one.outcome == "rejected":
            apart = short
        elif _beyond(longest, self.reject_norm):
            apart = apart.max(one.update)
        return arb(1), apart

    def attacked(self, one: _Client, threat: Record, norm: float) -> tuple[arb, arb]:
        """Eqs. (7) and (8): factor and term of a client that attacks, whichever gives less."""
        error, own, kappa, stretch = _SUBMITTED[threat["level"]](self, one, threat, norm)
        room = arb(self.room)
        short = _smaller(own, room)
        error = _smaller(error, room + own)
        apart = _smaller(short, one.update) + room
        if threat["level"] == "forensic":  # the run that was observed is the attacked one
            apart = _smaller(apart, one.update + short)
        if not _beyond(own, self.reject_norm) and one.plain:
            apart = _smaller(apart, _scaled(stretch, one.drift(self.distance)) + error)
        untouched = self.room == inf or not _beyond(own, self.room)
        if untouched and error.is_finite():
            contracting = kappa * self.distance + error
            if not apart.is_finite() or contracting.mid() <= (self.distance + apart).mid():
                return kappa, error
        return arb(1), apart


def _any_update(
    run: _Run, one: _Client, threat: Record, norm: float
) -> tuple[arb, arb, arb, float]:
    return arb.pos_inf(), one.honest(run.sent), one.kappa, 1.0


def _observed_update(
    run: _Run, one: _Client, threat: Record, norm: float
) -> tuple[arb, arb, arb, float]:
    # From the same weights, which were observed; what passes limits is sent from the other run's.
    return one.update + one.honest(run.broadcast), one.honest(run.sent), one.kappa, 1.0


def _poisoned_update(
    run: _Run, one: _Client, threat: Record, norm: float
) -> tuple[arb, arb, arb, float]:
    moved, fails = _injected(run, one, threat, norm)
    honest, kappa = one.honest(run.sent), one.kappa
    low, high = map(real_of, threat["scale"])
    longest, stretch = _scaled(high, honest + moved), 1.0
    if threat["comparator"] == "scaled":
        own, error, stretch = _scaled(high, honest), _scaled(high, moved), high
        kappa = _larger(*(abs(scale - 1) + scale * kappa for scale in (low, high)))
    else:
        own, ends = honest, (low, high)
        error = _larger(*(_scaled(by, moved) + _scaled(abs(by - 1), honest) for by in ends))
    if fails or not threat["valid"] or _beyond(longest, run.reject_norm):
        error = error.max(own)  # the update is zero after all
    return error, own, kappa, stretch


_SUBMITTED = {
    "client": _any_update,
    "forensic": _observed_update,
    "feature": _poisoned_update,
    "sample": _poisoned_update,
}


def _injected(run: _Run, one: _Client, threat: Record, norm: float) -> tuple[arb, bool]:
    """Eq. (6): how far poisoned samples move an update from the same weights; and whether they may
    make the training fail."""
    if not one.plain:
        return arb.pos_inf(), False
    root, clean = _root2(), one.size
    limit = threat.get("input_norm")
    poisoned = arb.pos_inf() if limit is None else arb(real_of(limit))
    if threat["level"] == "feature":
        poisoned = _smaller(poisoned, clean + norm)
    pushed = one.rate * root * clean.max(poisoned)
    travelled, changes, fails = arb(0), [], False
    for kept in one.kept:
        weights = kept * run.sent + travelled * pushed
        travelled += kept
        change = root * (clean + poisoned)
        if threat["level"] == "feature":
            outputs = root.min(weights * norm / 2) + (root if threat["flips"] else 0)
            change = change.min(root * norm + clean * outputs)
        changes.append(change)
        fails = fails or _beyond(weights * poisoned, _OVERFLOW)
    shares, most = _shares(one, threat)
    moved = [
        sum(
            (
                share * left * change
                for share, left, change in zip(row, one.left, changes, strict=True)
            ),
            arb(0),
        )
        for row in shares
    ]
    return one.rate * _largest_sum(moved, most), fails


def _shares(one: _Client, threat: Record) -> tuple[list[list[arb]], int]:
    """Poisoned share of each batch: rows, of which the worst so many are poisoned."""
    sizes, count = one.sizes, threat.get("samples")
    if threat.get("share") is not None:
        return [[arb(real_of(threat["share"]))] * len(sizes)], 1
    if threat.get("per_batch") is not None:
        return [[arb(min(threat["per_batch"], size)) / size for size in sizes]], 1
    if count is None:
        return [[arb(1)] * len(sizes)], 1
    drawn = one.record["samples"]
    if drawn is None:
        raise ValueError(f"client {one.record['client']}: its samples were not recorded")
    rows: dict[int, list[arb]] = {}
    start = 0
    for j, size in enumerate(sizes):
        for sample in drawn[start : start + size]:
            row = rows.setdefault(sample, [arb(0)] * len(sizes))
            row[j] = row[j] + arb(1) / size
        start += size
    if isinstance(count, int):
        return list(rows.values()), count
    named = set(dict(count)[one.record["client"]])
    worst = [row for sample, row in rows.items() if sample in named]
    return worst, len(worst)


def deviation(rounds: Sequence[Record], threat: Record, norm: float | None = None) -> Number:
    """How far apart the two final models can be, Eq. (3).

    Args:
        rounds: The rounds of a ledger, as its file says them.
        threat: The threat, as a file says it.
        norm: The backdoor norm; that of the threat by default.

    Raises:
        ValueError: The ledger says too little for this threat.
    """
    size = real_of(threat.get("norm") or 0.0) if norm is None else norm
    return Number(lambda: _propagated(rounds, threat, size))


def _propagated(rounds: Sequence[Record], threat: Record, norm: float) -> arb:
    most, named = threat["at_most"], set(threat["clients"])
    base, totals = arb(0), dict[int, arb]()
    distance, reach = arb(0), inf
    for record in rounds:
        run = _Run(record, distance, reach, [_Client(one) for one in record["participants"]])
        change = _without if threat["level"] == "removal" else _with
        kappa, term, added = change(run, threat, named, most, norm)
        base = base * kappa + term
        totals = {client: total * kappa for client, total in totals.items()}
        for client, more in added.items():
            totals[client] = totals.get(client, arb(0)) + more
        distance = base + _largest_sum(list(totals.values()), most)
        clip = real_of(record["clip"])
        if clip < inf and not distance <= 2 * clip:
            distance = base = arb(2) * clip
            totals = {}
        reach = clip + real_of(record["noise_norm"])
    return distance


def _with(
    run: _Run, threat: Record, named: set[int], most: int, norm: float
) -> tuple[arb, arb, dict[int, arb]]:
    """A round with the attack in it: factor, term, and what each unknown attacker adds."""
    rounds = threat.get("rounds")
    attacked = rounds is None or run.record["index"] in rounds
    if attacked and threat["level"] == "client" and run.update_clip == inf:
        raise ValueError(f"round {run.record['index']}: updates are not clipped")
    total = sum((one.weight for one in run.clients), arb(0))
    kappa, term, added = abs(1 - run.step * total), arb(0), dict[int, arb]()
    for one in run.clients:
        client = one.record["client"]
        factor, error = run.followed(one)
        if attacked and client in named:
            factor, error = run.attacked(one, threat, norm)
        elif attacked and most:
            worse, more = run.attacked(one, threat, norm)
            excess = (worse - factor).max(arb(0)) * run.distance + (more - error).max(arb(0))
            added[client] = run.step * one.weight * excess
        kappa += run.step * one.weight * factor
        term += run.step * one.weight * error
    return kappa, term, added


def _without(
    run: _Run, threat: Record, named: set[int], most: int, norm: float
) -> tuple[arb, arb, dict[int, arb]]:
    """Eqs. (9) and (10): a round from which clients are taken away."""
    others = [one for one in run.clients if one.record["client"] not in named]
    weights = [one.weight for one in others]
    left = sum(weights, arb(0)) - _largest_sum(weights, most)
    if len(others) <= most or not left > 0:
        raise ValueError(f"round {run.record['index']}: nobody is left")
    followed = [run.followed(one) for one in others]
    factors = [factor for factor, _ in followed]
    mean = sum((w * k for w, k in zip(weights, factors, strict=True)), arb(0)) / sum(
        weights, arb(0)
    )
    lost = [w * (mean - k).max(arb(0)) for w, k in zip(weights, factors, strict=True)]
    mean = _larger(*factors).min(mean + _largest_sum(lost, most) / left)
    term = sum((w * e for w, (_, e) in zip(weights, followed, strict=True)), arb(0)) / left
    added = {}
    for one in run.clients:
        change = run.step * one.gap / left
        if one.record["client"] in named:
            term += one.gap / left
        elif most:
            added[one.record["client"]] = change
    return abs(1 - run.step) + run.step * mean, run.step * term, added
