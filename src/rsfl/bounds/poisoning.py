"""How far poisoned clients can have moved one trained model, and what that leaves certified.

Two runs are coupled: same initial weights, participants, mini-batches and server noise. One is honest, in the other the
threat is carried out (or, at the removal level, the clients never existed). One of them was run and left a ledger; the
bound D on the distance of the two final models holds whichever of the two it was. A prediction that no change of the
parameters smaller than its radius can alter is therefore the same in both runs as soon as D < radius.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsfl._checks import Float64, Floats, Int64, choice, count, counts, number, numbers, unwrapped
from rsfl.bounds.ledger import Participant, Round
from rsfl.bounds.radii import cohen_radius

__all__ = [
    "CONDITIONS",
    "LEVELS",
    "ConditionError",
    "Deviation",
    "Participant",
    "Round",
    "Threat",
    "conditions",
    "deviation",
    "largest_norm",
    "largest_number",
    "latest_round",
    "parameter_radius",
]

LEVELS = ("feature", "sample", "client", "forensic", "removal")

_ROOT2 = sqrt(2.0) * (1 + 2**-52)  # just above sqrt(2): the bound on ||p - y||, on ||p - p'|| and on ||y - y'||
_ULP = 2.0**-50  # eight units of rounding: more than any one of the short expressions below can lose


@dataclass(frozen=True)
class Threat:
    """Who attacks, when, and with what power, in one line.

    The levels, from the weakest attacker to the strongest, then two questions about the past:

    - ``"feature"``: moves training inputs by at most ``norm`` each, and flips their labels if ``flips``.
    - ``"sample"``: replaces training samples by any others with || (x, 1) || <= ``input_norm``.
    - ``"client"``: sends any update whatever, under the server's update clip.
    - ``"forensic"``: sent what the ledger says; compared with the run in which it had been honest.
    - ``"removal"``: did whatever it did; compared with the run in which it had never taken part.

    Args:
        level: One of the above.
        clients: The attackers. Or else
        at_most: any unknown set of at most so many clients.
        rounds: Indices of the attacked rounds; None for all of them (the only choice for a removal).
        norm: Largest l2 norm of the change of one input (feature level).
        flips: Whether labels may change as well (feature level).
        samples: Which of its samples each attacker poisons: {client: indices}, or any so many of them.
        per_batch: Most poisoned draws in any mini-batch.
        share: Largest poisoned share of any mini-batch, the short ones included.
            Without any of these three, all the samples of the attackers may be poisoned.
        scale: Factor on the attackers' updates (feature and sample level); a pair (low, high) if it lies in between.
        input_norm: Bound on || (x, 1) || of poisoned inputs. Required at the sample level; at the feature level the
            ledger's bound plus ``norm`` holds anyway.
        comparator: ``"clean"``: the attackers are honest. ``"scaled"``: they train on clean data but scale their
            updates all the same, as the published CRFL certificate has it.

    Raises:
        TypeError, ValueError: A number out of its range, a setting that the level does not have, or one that it lacks.

    Example:
        >>> Threat("feature", clients=[3], rounds=[10], norm=0.1, per_batch=5, scale=10.0).clients
        (3,)
        >>> Threat("removal", at_most=2).rounds is None
        True
    """

    level: str
    _: KW_ONLY
    clients: Sequence[int] | None = None
    at_most: int | None = None
    rounds: Sequence[int] | None = None
    norm: float | None = None
    flips: bool = True
    samples: int | Mapping[int, Sequence[int]] | None = None
    per_batch: int | None = None
    share: float | None = None
    scale: float | tuple[float, float] = 1.0
    input_norm: float | None = None
    comparator: str = "clean"

    def __post_init__(self) -> None:
        choice("level", self.level, LEVELS)
        choice("comparator", self.comparator, ("clean", "scaled"))
        checked: dict[str, Any] = {}
        for name in ("clients", "rounds"):
            if getattr(self, name) is not None:
                checked[name] = _ids(name, getattr(self, name))
        for name in ("at_most", "per_batch"):
            if getattr(self, name) is not None:
                checked[name] = count(name, getattr(self, name))
        for name, high in (("norm", inf), ("share", 1.0), ("input_norm", inf)):
            if getattr(self, name) is not None:
                checked[name] = number(name, getattr(self, name), 0.0, high, open_high=high == inf)
        if isinstance(self.samples, Mapping):
            checked["samples"] = {int(client): _ids("samples", which) for client, which in self.samples.items()}
        elif self.samples is not None:
            checked["samples"] = count("samples", self.samples)
        if not isinstance(self.flips, bool):
            raise TypeError(f"flips must be True or False, got {self.flips!r}")
        scale = numbers("scale", self.scale, 0.0, inf, open_high=True)
        if scale.shape not in ((), (2,)) or scale.min() != scale.flat[0]:
            raise ValueError(f"scale must be one number or a pair (low, high), got {self.scale!r}")
        checked["scale"] = (float(scale.min()), float(scale.max()))
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_settings()

    def _check_settings(self) -> None:
        """Refuse settings that contradict each other or that the level does not have."""
        if (self.clients is None) == (self.at_most is None):
            raise ValueError(f"give either clients or at_most, got clients={self.clients!r}, at_most={self.at_most!r}")
        data = ("samples", "per_batch", "share", "input_norm")
        known = {"feature": ("rounds", "norm", *data), "sample": ("rounds", *data), "removal": ()}
        for name in ("rounds", "norm", *data):
            if getattr(self, name) is not None and name not in known.get(self.level, ("rounds",)):
                raise ValueError(f"{name} says nothing at the {self.level} level, got {getattr(self, name)!r}")
        if self.level not in ("feature", "sample") and (self.scale != (1.0, 1.0) or self.comparator != "clean"):
            raise ValueError(f"scale and comparator say nothing at the {self.level} level, got scale={self.scale!r}")
        needed = {"feature": "norm", "sample": "input_norm"}.get(self.level)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{needed} must be given at the {self.level} level")
        if sum(setting is not None for setting in (self.samples, self.per_batch, self.share)) > 1:
            raise ValueError("samples, per_batch and share are three ways to say one thing: give at most one")
        if isinstance(self.samples, Mapping) and set(self.samples) != set(self.clients or ()):
            raise ValueError(f"samples must name the clients {self.clients!r}, got {sorted(self.samples)!r}")
        if self.comparator == "scaled" and self.clients is None:
            raise ValueError(f"clients must be named for comparator='scaled', got at_most={self.at_most!r}")

    def attacks(self, index: int) -> bool:
        """Whether the round of this index is attacked."""
        return self.rounds is None or index in self.rounds


def _ids(name: str, value: Sequence[int]) -> tuple[int, ...]:
    ids = counts(name, value)
    if ids.ndim != 1 or len(np.unique(ids)) < ids.size:
        raise ValueError(f"{name} must be a list of different whole numbers, got {value!r}")
    return tuple(ids.tolist())


class ConditionError(ValueError):
    """The run breaks a condition of the certificate, so that nothing can be certified from its ledger.

    Attributes:
        condition: Name of the condition, one of those in ``CONDITIONS``.
    """

    def __init__(self, condition: str, where: str, found: str):
        super().__init__(f"{where}: condition '{condition}' fails ({CONDITIONS[condition]}), got {found}")
        self.condition = condition


CONDITIONS = {
    "consecutive rounds": "the ledger holds every round, in order",
    "plain averaging": "the aggregator is the weighted mean: medians, Krum and RFA are not Lipschitz with constant 1",
    "linear model": "one affine layer with softmax cross-entropy, no buffers: the loss is convex",
    "plain loss": "local steps follow the gradient of the softmax cross-entropy: a convex loss with smoothness B^2/2",
    "plain SGD": "no momentum, no adaptive steps: either makes a convex step expand",
    "one decay": "every parameter has the same L2 decay: an undecayed bias would stop the contraction",
    "known inputs": "a finite bound B on the norm of (x, 1) over each client's clean inputs",
    "step size": "learning rate at most 2 / (decay + B^2/2), so that a local step does not expand",
    "server weights": "the server sets the weights, and they sum to 1",
    "server step": "the server applies a fraction of the average in (0, 1]",
    "fixed clip": "clip radii are set in advance, not from what clients send",
    "zero for rejected": "a rejected or absent update counts as zero and keeps its weight",
    "honest updates intact": "no honest update is clipped or rejected, in either run: that would not be a contraction",
    "float64": "training and averaging in float64, so that rounding stays far below the deviations bounded here",
    "update clip": "at the client level, the server clips each update at a finite norm",
    "recorded samples": "the indices of the samples drawn are in the ledger",
    "someone left": "after the removal, each round keeps a participant of positive weight",
}
"""Every condition that is checked in the ledger, by name."""


def _of_round(record: Round) -> list[tuple[str, bool, str]]:
    """The conditions on a round: name, whether it holds, and the value to quote."""
    total = sum(one.weight for one in record.participants)
    return [
        ("plain averaging", record.aggregator == "mean", f"aggregator={record.aggregator!r}"),
        ("linear model", record.model == "linear", f"model={record.model!r}"),
        ("plain loss", record.loss == "softmax cross-entropy", f"loss={record.loss!r}"),
        ("plain SGD", record.optimiser == "sgd", f"optimiser={record.optimiser!r}"),
        ("plain SGD", record.momentum == 0.0, f"momentum={record.momentum!r}"),
        ("server weights", record.weights_from == "server", f"weights_from={record.weights_from!r}"),
        ("server weights", abs(total - 1.0) <= 1e-12, f"weights that sum to {total!r}"),
        ("server step", 0.0 < record.server_step <= 1.0, f"server_step={record.server_step!r}"),
        ("fixed clip", record.clip_fixed, f"clip_fixed={record.clip_fixed!r}"),
        ("zero for rejected", record.reject == "zero", f"reject={record.reject!r}"),
        ("float64", record.dtype == "float64", f"dtype={record.dtype!r}"),
    ]


def _smoothness(one: Participant) -> float:
    """Largest curvature of the loss, B^2 / 2: the softmax's Jacobian has norm at most 1/2."""
    return one.input_norm * one.input_norm / 2


def _of_participant(one: Participant) -> list[tuple[str, bool, str]]:
    """The conditions on the training of one participant."""
    low, high = one.decay
    limit = 2.0 / (high + _smoothness(one))
    return [
        ("one decay", low == high, f"decay={one.decay!r}"),
        ("known inputs", one.input_norm < inf, f"input_norm={one.input_norm!r}"),
        # The slack is rounding: contraction factors are not capped at 1, so that it costs nothing but itself.
        ("step size", one.learning_rate <= limit * (1 + _ULP), f"learning_rate={one.learning_rate!r} > {limit!r}"),
    ]


def conditions(rounds: Sequence[Round], threat: Threat) -> tuple[str, ...]:
    """Names of the conditions checked in the ledger before a threat is bounded; raises if one fails.

    A removed client's own training is not looked at: the comparison run does without it. That honest updates stay
    intact depends on the deviation itself, and is checked along with it.

    Args:
        rounds: The ledger, every round of it in order.
        threat: The threat that is to be bounded.

    Returns:
        Names out of ``CONDITIONS``, all of them met in every round.

    Raises:
        ConditionError: A condition fails; the message names it and quotes the value, the round and the client.
        ValueError: The ledger is empty, or the threat attacks a round that is not in it.

    Example:
        >>> from rsfl.bounds.poisoning import CONDITIONS
        >>> "step size" in CONDITIONS
        True
    """
    if not rounds:
        raise ValueError("rounds must hold at least one round, got none")
    indices = [record.index for record in rounds]
    missing = sorted(set(threat.rounds or ()) - set(indices))
    if missing:
        raise ValueError(f"threat.rounds must lie in the ledger's rounds {indices[0]} to {indices[-1]}, got {missing}")
    if indices != list(range(indices[0], indices[0] + len(indices))):
        raise ConditionError("consecutive rounds", "the ledger", f"rounds {indices!r}")
    outside = set(threat.clients or ()) if threat.level == "removal" else set()
    names = ["consecutive rounds"]
    for record in rounds:
        found = [(f"round {record.index}", *rest) for rest in _of_round(record)]
        for one in record.participants:
            if one.client not in outside:
                found += [(f"round {record.index}, client {one.client}", *rest) for rest in _of_participant(one)]
        for where, name, holds, value in found:
            if not holds:
                raise ConditionError(name, where, value)
            names.append(name)
    return tuple(dict.fromkeys(names))


def _up(operations: int) -> float:
    """Factor that makes up for the rounding of so many operations on non-negative numbers."""
    return 1.0 + (operations + 4) * 2.0**-52


def _step_factor(one: Participant) -> float:
    """Lipschitz constant of one honest local step: max(|1 - eta lam|, |1 - eta (lam + beta)|), rounded up."""
    rate, decay = one.learning_rate, one.decay[0]
    return max(abs(1 - rate * decay), abs(1 - rate * (decay + _smoothness(one)))) + _ULP


def _decays(one: Participant) -> Float64:
    """What decay leaves of the weights after 0, 1, ..., steps - 1 local steps, rounded up."""
    kept = abs(1 - one.learning_rate * one.decay[0]) + _ULP * (one.decay[0] > 0)
    return np.asarray(kept ** np.arange(len(one.batch_sizes)) * _up(8), dtype=np.float64)


def _training(one: Participant) -> tuple[float, float, float]:
    """Of an honest local training: its Lipschitz constant, then what bounds its update, pull * || sent || + push."""
    steps, rate, decay = len(one.batch_sizes), one.learning_rate, one.decay[0]
    kappa = _step_factor(one) ** steps * _up(4)
    if one.outcome in ("absent", "rejected"):
        kappa = max(kappa, 1.0)  # the update counts as zero, and the training as the identity
    pull = abs(1 - (1 - rate * decay) ** steps) + steps * _ULP * (decay > 0)
    push = rate * _ROOT2 * one.input_norm * float(_decays(one).sum()) * _up(steps)
    return kappa, pull, push


@dataclass(frozen=True, eq=False)
class _Frame:
    """The arrays over a round's participants that the recursion needs, computed once."""

    record: Round
    ids: tuple[int, ...]
    weight: Float64
    update: Float64
    gap: Float64
    kappa: Float64
    pull: Float64
    push: Float64
    absent: NDArray[np.bool_]
    intact: NDArray[np.bool_]

    @classmethod
    def of(cls, record: Round, threat: Threat) -> "_Frame":
        everyone = record.participants
        removed = threat.clients or () if threat.level == "removal" else ()
        # Of the training of a removed client nothing is known, and nothing is used.
        training = [(0.0, 0.0, 0.0) if one.client in removed else _training(one) for one in everyone]
        kappa, pull, push = np.array(training).T
        return cls(
            record=record,
            ids=tuple(one.client for one in everyone),
            weight=np.array([one.weight for one in everyone]),
            update=np.array([one.update_norm for one in everyone]),
            gap=np.array([one.gap for one in everyone]),
            kappa=kappa,
            pull=pull,
            push=push,
            absent=np.array([one.outcome == "absent" for one in everyone]),
            intact=np.array([one.outcome in ("used", "absent") for one in everyone]),
        )

    @property
    def room(self) -> float:
        """Norm up to which the server averages an update as it comes."""
        return min(self.record.update_clip, self.record.reject_norm)

    def honest(self, sent_norm: Float64) -> Float64:
        """Bounds (participants, lanes) on the honest updates from weights of norm at most ``sent_norm`` (lanes,)."""
        bounds: Float64 = (self.pull[:, None] * sent_norm + self.push[:, None]) * _up(4)
        return bounds


def _shares(one: Participant, threat: Threat, where: str) -> tuple[Float64, int]:
    """Poisoned share of each batch: a matrix (rows, steps) of which the worst so many rows may be poisoned."""
    sizes = np.array(one.batch_sizes, float)
    if threat.share is not None:
        return np.full((1, sizes.size), threat.share), 1
    if threat.per_batch is not None:
        return np.minimum(threat.per_batch, sizes)[None] / sizes, 1
    if threat.samples is None:
        return np.ones((1, sizes.size)), 1
    if one.samples is None:
        raise ConditionError("recorded samples", where, "samples=None")
    drawn, row = np.unique(one.samples, return_inverse=True)
    step = np.repeat(np.arange(sizes.size), one.batch_sizes)
    shares = np.zeros((drawn.size, sizes.size))
    np.add.at(shares, (row, step), 1 / sizes[step])
    if isinstance(threat.samples, int):
        return shares, threat.samples
    return shares[np.isin(drawn, threat.samples[one.client])].sum(axis=0, keepdims=True), 1


def _injected(one: Participant, threat: Threat, norm: Float64, sent_norm: Float64, where: str) -> Float64:
    """Bounds (lanes,) on || poisoned update - honest update ||, both unscaled and from the same weights.

    One step apart: the honest step from both iterates, which contracts, and the change of the gradient at the poisoned
    iterate. With a = p - y, a sample adds || a x - a' x' || <= || a' || || x - x' || + || a - a' || || x ||.
    """
    clean, rate = one.input_norm, one.learning_rate
    poisoned = np.full_like(norm, inf if threat.input_norm is None else threat.input_norm)
    if threat.level == "feature":
        poisoned = np.minimum(poisoned, clean + norm)
    kept = _decays(one)[:, None]
    travelled = np.vstack([np.zeros((1, 1)), np.cumsum(kept, axis=0)[:-1]])
    change = _ROOT2 * (clean + poisoned)
    if threat.level == "feature":
        weights = kept * sent_norm + travelled * (rate * _ROOT2 * np.maximum(clean, poisoned))
        outputs = np.minimum(_ROOT2, weights * norm / 2) + threat.flips * _ROOT2
        change = np.minimum(change, _ROOT2 * norm + clean * outputs)
    later = _step_factor(one) ** np.arange(len(one.batch_sizes) - 1, -1, -1)
    shares, most = _shares(one, threat, where)
    total: Float64 = rate * _top((shares * later) @ np.broadcast_to(change, (later.size, norm.size)), most)
    return total * _up(4 * later.size + sum(one.batch_sizes))


def _top(values: Float64, most: int) -> Float64:
    """Sums of the ``most`` largest entries along the first axis."""
    total: Float64 = np.sort(values, axis=0)[max(len(values) - most, 0) :].sum(axis=0)
    return total


def _errors(
    frame: _Frame, threat: Threat, norm: Float64, sent_norm: Float64, attackers: NDArray[np.bool_]
) -> tuple[Float64, Float64, Float64]:
    """What the attackers change in an attacked round, removal apart.

    Returns:
        Lipschitz constants (participants,) of the comparison run's updates, bounds (participants, lanes) on the norms
        of those updates, and bounds (participants, lanes) on || submitted update - comparison update ||, both from the
        weights sent in the attacked run.
    """
    record, kappa = frame.record, frame.kappa
    honest = frame.honest(sent_norm)
    errors = np.zeros_like(honest)
    where = f"round {record.index}"
    if threat.level == "client":
        if record.update_clip == inf:
            raise ConditionError("update clip", where, f"update_clip={record.update_clip!r}")
        errors[attackers] = (record.update_clip + honest)[attackers]
    elif threat.level == "forensic":
        errors[attackers] = (frame.update[:, None] + frame.honest(np.array([record.broadcast_norm])))[attackers]
    else:
        low, high = _pair(threat.scale)
        for row in np.flatnonzero(attackers):
            one = record.participants[row]
            moved = _injected(one, threat, norm, sent_norm, f"{where}, client {one.client}")
            reach = high * (honest[row] + moved)
            if threat.comparator == "scaled":
                errors[row] = high * moved
                honest[row] *= high
            else:
                # Convex in the scale: the worst lies at an end.
                errors[row] = np.maximum(
                    low * moved + abs(low - 1) * honest[row], high * moved + abs(high - 1) * honest[row]
                )
            # An update that may be too long for the server may end up as zero; one that is clipped only comes closer.
            errors[row] = np.where(reach > record.reject_norm, np.maximum(errors[row], honest[row]), errors[row])
            errors[row] = np.minimum(errors[row], record.update_clip + honest[row])
        if threat.comparator == "scaled":
            scaled = np.maximum(abs(low - 1) + low * kappa, abs(high - 1) + high * kappa)
            kappa = np.where(attackers, scaled, kappa)
    return kappa, honest, errors * _up(16)


def _removed(frame: _Frame, outside: NDArray[np.bool_], most: int) -> tuple[float, Float64]:
    """Mean Lipschitz constant over the others, and changes (participants,), when some of ``outside`` never took part.

    Removing the share P from a weighted mean moves it by || sum over the removed of p (u - mean) || / (1 - P). The same
    algebra bounds the mean of the Lipschitz constants over whoever is left.
    """
    weight, kappa = frame.weight, frame.kappa
    candidates = np.sort(weight[outside])
    left = weight[~outside].sum() + candidates[: max(candidates.size - most, 0)].sum()
    if left <= 0:
        raise ConditionError("someone left", f"round {frame.record.index}", f"weights={weight.tolist()!r}")
    mean = (weight * kappa).sum() / weight.sum()
    if candidates.size <= most:
        others = (weight * kappa)[~outside].sum() / left
    else:
        others = min(kappa.max(), mean + float(_top(weight * np.maximum(mean - kappa, 0), most)) / left)
    return float(others) * _up(8 * weight.size), frame.gap / left * _up(weight.size)


def _pair(scale: float | tuple[float, float]) -> tuple[float, float]:
    low, high = np.broadcast_to(scale, (2,)).tolist()
    return low, high


def _effect(
    frame: _Frame, threat: Threat, norm: Float64, distance: Float64, reach: float, attackers: NDArray[np.bool_]
) -> tuple[float, Float64, Float64]:
    """What one round does to the distance between the runs.

    Returns:
        The Lipschitz constant of the comparison run's round, what each participant adds (participants, lanes), and how
        long an honest update of either run may be (lanes,); 0 where the server would not touch any.
    """
    record, step, kappa = frame.record, frame.record.server_step, frame.kappa
    # Of the broadcast that was not observed only this is known. It also covers the one that was.
    sent_norm = np.maximum(record.broadcast_norm, np.minimum(record.broadcast_norm + distance, reach) * _up(2))
    honest = added = np.zeros((attackers.size, norm.size))
    named = threat.clients is not None
    if threat.level == "removal":
        mean, changes = _removed(frame, attackers, attackers.size if named else threat.at_most or 0)
        lipschitz = abs(1 - step) + step * mean
        added = np.repeat(step * changes[:, None], norm.size, axis=1)
    else:
        if attackers.any():
            kappa, honest, errors = _errors(frame, threat, norm, sent_norm, attackers)
            added = step * frame.weight[:, None] * errors
        lipschitz = abs(1 - step * frame.weight.sum()) + step * (frame.weight * kappa).sum()

    altered = ~frame.intact & ~(attackers & named)
    if altered.any():
        one = record.participants[int(np.argmax(altered))]
        where = f"round {record.index}, client {one.client}"
        raise ConditionError("honest updates intact", where, f"outcome={one.outcome!r}")
    longest = np.zeros_like(norm)
    if frame.room < inf:
        # An honest update moves with the weights by at most (1 + kappa) D from one run to the other.
        drifted = (frame.update[:, None] + (1 + frame.kappa[:, None]) * distance) * _up(4)
        length = np.minimum(frame.honest(sent_norm), drifted)
        if threat.level != "removal":
            length[attackers] = honest[attackers]  # what attackers sent says nothing of their honest updates
        elif named:
            length[attackers] = 0.0  # the comparison run is without them
        longest = length[~frame.absent].max(axis=0, initial=0.0)
    return float(lipschitz) * _up(attackers.size), added, longest


def _propagate(
    frames: Sequence[_Frame], threat: Threat, norm: Float64
) -> tuple[Float64, Float64, ConditionError | None]:
    """The recursion over rounds, for one backdoor norm per lane.

    D_t = min(2 rho_t, kappa_t D_{t-1} + s * sum over the attackers of p_i e_{i,t}). The sum is kept apart per client,
    so that for an unknown set of m attackers the m largest totals over *all* rounds are taken. Where 2 rho_t is the
    smaller, it takes the place of all that came before.

    Returns:
        D after each round (rounds, lanes), inf in lanes where an honest update may have been touched; the contraction
        of each round; and the reason for the first such lane.
    """
    clients = threat.clients if threat.clients is not None else sorted({one for frame in frames for one in frame.ids})
    most = len(clients) if threat.at_most is None else threat.at_most
    row = {client: at for at, client in enumerate(clients)}
    base, totals = np.zeros_like(norm), np.zeros((len(clients), norm.size))
    distance, reach, touched, reason = np.zeros_like(norm), inf, np.zeros(norm.shape, bool), None
    trace, contractions = [], []
    for frame in frames:
        record = frame.record
        attacked = threat.attacks(record.index)
        attackers = np.array([attacked and client in row for client in frame.ids])
        lipschitz, added, longest = _effect(frame, threat, norm, distance, reach, attackers)
        if reason is None and (longest > frame.room).any():
            found = f"updates of norm up to {float(longest.max())!r} where only {frame.room!r} pass untouched"
            reason = ConditionError("honest updates intact", f"round {record.index}", found)
        touched |= longest > frame.room
        base, totals = base * lipschitz, totals * lipschitz
        totals[[row[frame.ids[at]] for at in np.flatnonzero(attackers)]] += added[attackers]
        distance = (base + _top(totals, most)) * _up(len(clients))
        capped = distance > 2 * record.clip
        base[capped], totals[:, capped] = 2 * record.clip, 0.0
        distance = np.minimum(distance, 2 * record.clip)
        reach = record.clip + record.noise_norm
        trace.append(np.where(touched, inf, distance))
        contractions.append(lipschitz)
    return np.array(trace), np.array(contractions), reason


_BELIEVED = (
    "both runs share their initial weights, participants, mini-batches, server noise and absences",
    "learning rates, decays, schedules and the number of rounds do not depend on what clients send",
    "input_norm bounds the clean inputs of every client that trains honestly in either run",
    "exact arithmetic: float64 rounding in training is not added to the bound",
)
_BELIEVED_OF = {
    "feature": (
        "poisoned inputs, and how many there are, keep to the threat; attackers otherwise follow the protocol",
    ),
    "sample": (
        "poisoned samples, and how many there are, keep to the threat; attackers otherwise follow the protocol",
    ),
    "client": ("the server clips every update at update_clip and counts a non-finite one as zero",),
    "forensic": ("the attackers' recorded settings are those they would have trained with",),
    "removal": (
        "everyone but the removed clients follows the protocol, in both runs",
        "the comparison run draws its participants before the clients are left out, and renormalises the weights",
    ),
}


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far apart the final models of the honest and the attacked run can be.

    Attributes:
        value: Bound on the l2 distance of all parameters after the last round; a prediction is certified where this is
            strictly below its radius.
        trace: The bound after each round, shape (rounds,).
        contraction: Factor by which each round shrinks an earlier distance, shape (rounds,).
        threat: What was bounded.
        checked: Names of the conditions that were checked in the ledger, all of them met.
        believed: What no ledger can show and the caller answers for.
    """

    value: float
    trace: Float64
    contraction: Float64
    threat: Threat
    checked: tuple[str, ...]
    believed: tuple[str, ...]


def deviation(rounds: Sequence[Round], threat: Threat) -> Deviation:
    r"""Bound on the distance between the final models of two runs that differ by a threat.

    .. math::
        D_t = \min\Bigl(2\rho_t,\; \kappa_t D_{t-1} + s \sum_{i \in A_t} p_i e_{i,t}\Bigr), \qquad
        \kappa_t = 1 - s \Bigl(1 - \sum_i p_i \kappa_i\Bigr), \qquad
        \kappa_i = \max(|1 - \eta\lambda|, |1 - \eta(\lambda + B^2/2)|)^{\tau}

    where :math:`e_{i,t}` bounds the distance between the submitted update and the honest one from the same weights.

    Assumes:
        The conditions in ``CONDITIONS``, which are checked, and those in ``Deviation.believed``.

    Args:
        rounds: The ledger, every round of it in order; the runs agree before the first of them.
        threat: Who attacks, when and how.

    Returns:
        The bound, never below the exact value of the recursion, with its trace.

    Raises:
        ConditionError: The run breaks a condition; the message names it and quotes the value.
        ValueError: The ledger is empty, or the threat attacks a round that is not in it.

    Example:
        >>> client = Participant(
        ...     client=0, weight=0.5, learning_rate=0.1, decay=(0.1, 0.1), input_norm=1.4, batch_sizes=[10, 10],
        ...     update_norm=0.2, gap=0.01)
        >>> other = replace(client, client=1)
        >>> record = Round(
        ...     index=1, participants=[client, other], broadcast_norm=0.0, aggregator="mean", model="linear",
        ...     loss="softmax cross-entropy", optimiser="sgd", momentum=0.0, dtype="float64", weights_from="server",
        ...     seed=0)
        >>> deviation([record], Threat("removal", clients=[0])).value
        0.0200...
        >>> deviation([record], Threat("feature", clients=[0], norm=0.1, flips=False, per_batch=1)).value
        0.0014...

    References:
        "A certificate for one trained model", in the documentation.
    """
    checked = conditions(rounds, threat)
    frames = [_Frame.of(record, threat) for record in rounds]
    trace, contractions, reason = _propagate(frames, threat, np.array([threat.norm or 0.0]))
    if reason is not None:
        raise reason
    return Deviation(
        value=float(trace[-1, 0]),
        trace=trace[:, 0],
        contraction=contractions,
        threat=threat,
        checked=(*checked, "honest updates intact"),
        believed=_BELIEVED + _BELIEVED_OF[threat.level],
    )


def largest_norm(rounds: Sequence[Round], threat: Threat, radius: ArrayLike) -> Floats:
    """The largest backdoor norm, all else in a feature-level threat equal, that still leaves predictions certified.

    Args:
        rounds: The ledger, as for :func:`deviation`.
        threat: A threat of the feature level; its own norm is not used.
        radius: Certified radius of each prediction in parameter space, at least 0.

    Returns:
        A norm for each radius, at most 2**400: :func:`deviation` at this norm and at every smaller one is below the
        radius. 0 promises nothing.

    Raises:
        ConditionError, ValueError: As for :func:`deviation`; also if the threat is of another level.
    """
    if threat.level != "feature":
        raise ValueError(f"threat must be of the feature level, got {threat.level!r}")
    radii = numbers("radius", radius, 0.0)
    wanted, where = np.unique(radii, return_inverse=True)
    conditions(rounds, threat)
    frames = [_Frame.of(record, threat) for record in rounds]
    _, _, reason = _propagate(frames, threat, np.zeros(1))
    if reason is not None:
        raise reason

    def holds(norm: Float64) -> NDArray[np.bool_]:
        # The margin is for rounding that depends on how many lanes are summed at once.
        below: NDArray[np.bool_] = _propagate(frames, threat, norm)[0][-1] * _up(200) < wanted
        return below

    # Exponents first, then digits: each norm kept was itself found certified, and D is monotone in the norm.
    low, smallest, largest = np.zeros_like(wanted), np.full_like(wanted, -401.0), np.full_like(wanted, 401.0)
    for _ in range(10):
        middle = np.floor((smallest + largest) / 2)
        good = holds(2.0**middle)
        low = np.where(good, 2.0**middle, low)
        smallest, largest = np.where(good, middle, smallest), np.where(good, largest, middle)
    high = np.where(largest > 400, low, 2.0**largest)
    for _ in range(52):
        middle = low + (high - low) / 2
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return unwrapped(low[where].reshape(radii.shape))


def largest_number(rounds: Sequence[Round], threat: Threat, radius: ArrayLike) -> Int64:
    """The largest number of unknown attackers, or of removed clients, that still leaves predictions certified.

    Args:
        rounds: The ledger, as for :func:`deviation`.
        threat: A threat by an unknown set of clients; its own ``at_most`` is not used.
        radius: Certified radius of each prediction in parameter space, at least 0.

    Returns:
        For each radius the largest m such that the threat with ``at_most=m`` is certified; 0 promises nothing. A
        prediction that no set of clients can change gets the number of clients in the ledger (for a removal, a number
        that leaves someone in every round).

    Raises:
        ConditionError, ValueError: As for :func:`deviation` with one attacker; also if the threat names its clients.
    """
    if threat.at_most is None:
        raise ValueError(f"threat must be by an unknown set of clients, got clients={threat.clients!r}")
    radii = numbers("radius", radius, 0.0)
    bounds = [deviation(rounds, replace(threat, at_most=1)).value]
    everyone = {one.client for record in rounds for one in record.participants}
    while len(bounds) < len(everyone) and bounds[-1] < radii.max(initial=0.0):
        try:
            bounds.append(deviation(rounds, replace(threat, at_most=len(bounds) + 1)).value)
        except ConditionError:
            break  # with so many removed, no one is left; or an honest update could have been touched
    return np.searchsorted(np.maximum.accumulate(bounds), radii, side="left").astype(np.int64)


def latest_round(rounds: Sequence[Round], threat: Threat, radius: ArrayLike) -> Int64:
    """The latest round in which a one-round attack still leaves predictions certified, as does any round before it.

    Args:
        rounds: The ledger, as for :func:`deviation`.
        threat: A threat of any level but removal; its own rounds are not used.
        radius: Certified radius of each prediction in parameter space, at least 0.

    Returns:
        For each radius the index of that round, or the first index less 1 where not even the first round's attack is
        certified.

    Raises:
        ConditionError, ValueError: As for :func:`deviation`; also if the threat is a removal.
    """
    if threat.level == "removal":
        raise ValueError("threat must be of a level with attacked rounds, got 'removal'")
    radii = numbers("radius", radius, 0.0)
    conditions(rounds, replace(threat, rounds=None))
    frames = [_Frame.of(record, threat) for record in rounds]
    bounds = []
    for at, record in enumerate(rounds):
        alone = replace(threat, rounds=[record.index])
        # Before the attacked round the runs agree. The round just before it is kept, to see that it was honest.
        trace, _, _ = _propagate(frames[max(at - 1, 0) :], alone, np.array([threat.norm or 0.0]))
        bounds.append(float(trace[-1, 0]))
    return rounds[0].index - 1 + np.searchsorted(np.maximum.accumulate(bounds), radii, side="left").astype(np.int64)


def parameter_radius(p_a: ArrayLike, p_b: ArrayLike | None = None, *, sigma: ArrayLike) -> Floats:
    r"""How far all parameters together may move (l2) before a parameter-smoothed prediction can change.

    :math:`\tfrac{\sigma}{2} (\Phi^{-1}(p_A) - \Phi^{-1}(p_B))`: the Gaussian smoothing theorem with the input held
    fixed and the parameters as the variable.

    Assumes:
        The prediction is the majority vote of models whose parameters carry noise :math:`N(0, \sigma^2 I)`, drawn
        independently of training; p_a and p_b bound the votes of the model that was trained.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        sigma: Standard deviation of the parameter noise, positive.

    Returns:
        A radius never above the exact one, 0 for a lost vote; compare with :func:`deviation`, strictly.

    Raises:
        TypeError, ValueError: As for :func:`rsfl.bounds.cohen_radius`.

    Example:
        >>> parameter_radius(0.9, sigma=0.1)
        0.1281...
    """
    return cohen_radius(p_a, p_b, sigma=sigma)
