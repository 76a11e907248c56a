"""How far poisoned clients can have moved one trained model, and what that leaves certified.

Two runs are coupled: same initial weights, participants, mini-batches and server noise. One is
honest, in the other the threat is carried out (or, at the removal level, the clients never
existed). One of them was run and left a ledger; the bound D on the distance of the two final models
holds whichever of the two it was. A prediction that no change of the parameters smaller than its
radius can alter is therefore the same in both runs as soon as D < radius.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from rsfl._checks import Float64
from rsfl.bounds._safe import ULP, up
from rsfl.bounds.condition import ConditionError, conditions, smoothness, trusted
from rsfl.bounds.records import Participant, Round
from rsfl.bounds.threat import Threat

__all__ = ["Deviation", "Frame", "deviation", "propagate"]

_ROOT2 = sqrt(2.0) * (
    1 + 2**-52
)  # just above sqrt(2): the bound on ||p - y||, on ||p - p'|| and on ||y - y'||


def _step_factor(one: Participant) -> float:
    """Lipschitz constant of one honest local step: max(|1 - eta lam|, |1 - eta (lam + beta)|),
    rounded up."""
    rate, decay = one.lr, one.decay[0]
    return max(abs(1 - rate * decay), abs(1 - rate * (decay + smoothness(one)))) + ULP


def _decays(one: Participant) -> Float64:
    """What decay leaves of the weights after 0, 1, ..., steps - 1 local steps, rounded up."""
    kept = abs(1 - one.lr * one.decay[0]) + ULP * (one.decay[0] > 0)
    return np.asarray(kept ** np.arange(len(one.batch_sizes)) * up(8), dtype=np.float64)


def _training(one: Participant) -> tuple[float, float, float]:
    """Of an honest local training: its Lipschitz constant, then what bounds its update, pull * ||
    sent || + push."""
    steps, rate, decay = len(one.batch_sizes), one.lr, one.decay[0]
    kappa = _step_factor(one) ** steps * up(4)
    if one.outcome in ("absent", "rejected"):
        kappa = max(kappa, 1.0)  # the update counts as zero, and the training as the identity
    pull = abs(1 - (1 - rate * decay) ** steps) + steps * ULP * (decay > 0)
    push = rate * _ROOT2 * one.input_norm * float(_decays(one).sum()) * up(steps)
    return kappa, pull, push


@dataclass(frozen=True, eq=False)
class Frame:
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
    def of(cls, record: Round, threat: Threat) -> "Frame":
        """The arrays of a round, as far as a threat reads them."""
        everyone = record.participants
        removed = threat.clients or () if threat.level == "removal" else ()
        # Of the training of a removed client nothing is known, and nothing is used.
        training = [
            (0.0, 0.0, 0.0) if one.client in removed else _training(one) for one in everyone
        ]
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
        """Bounds (participants, lanes) on the honest updates from weights of norm at most
        ``sent_norm`` (lanes,)."""
        bounds: Float64 = (self.pull[:, None] * sent_norm + self.push[:, None]) * up(4)
        return bounds


def _shares(one: Participant, threat: Threat, where: str) -> tuple[Float64, int]:
    """Poisoned share of each batch: a matrix (rows, steps) of which the worst so many rows may be
    poisoned."""
    sizes = np.array(one.batch_sizes, float)
    if threat.share is not None:
        return np.full((1, sizes.size), threat.share), 1
    if threat.per_batch is not None:
        return np.minimum(threat.per_batch, sizes)[None] / sizes, 1
    if threat.samples is None:
        return np.ones((1, sizes.size)), 1
    if one.samples is None:
        raise ConditionError("recorded-samples", where, "samples=None")
    drawn, row = np.unique(one.samples, return_inverse=True)
    step = np.repeat(np.arange(sizes.size), one.batch_sizes)
    shares = np.zeros((drawn.size, sizes.size))
    np.add.at(shares, (row, step), 1 / sizes[step])
    if isinstance(threat.samples, int):
        return shares, threat.samples
    return shares[np.isin(drawn, threat.samples[one.client])].sum(axis=0, keepdims=True), 1


def _injected(
    one: Participant, threat: Threat, norm: Float64, sent_norm: Float64, where: str
) -> Float64:
    """Bounds (lanes,) on || poisoned update - honest update ||, both unscaled and from the same
    weights.

    One step apart: the honest step from both iterates, which contracts, and the change of the
    gradient at the poisoned iterate. With a = p - y, a sample adds || a x - a' x' || <= || a' || ||
    x - x' || + || a - a' || || x ||.
    """
    clean, rate = one.input_norm, one.lr
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
    total: Float64 = rate * _top(
        (shares * later) @ np.broadcast_to(change, (later.size, norm.size)), most
    )
    return total * up(4 * later.size + sum(one.batch_sizes))


def _top(values: Float64, most: int) -> Float64:
    """Sums of the ``most`` largest entries along the first axis."""
    total: Float64 = np.sort(values, axis=0)[max(len(values) - most, 0) :].sum(axis=0)
    return total


def _errors(
    frame: Frame, threat: Threat, norm: Float64, sent_norm: Float64, attackers: NDArray[np.bool_]
) -> tuple[Float64, Float64, Float64]:
    """What the attackers change in an attacked round, removal apart.

    Returns:
        Lipschitz constants (participants,) of the comparison run's updates, bounds (participants,
        lanes) on the norms of those updates, and bounds (participants, lanes) on || submitted
        update - comparison update ||, both from the weights sent in the attacked run.
    """
    record, kappa = frame.record, frame.kappa
    honest = frame.honest(sent_norm)
    errors = np.zeros_like(honest)
    where = f"round {record.index}"
    if threat.level == "client":
        if record.update_clip == inf:
            raise ConditionError("update-clip", where, f"update_clip={record.update_clip!r}")
        errors[attackers] = (record.update_clip + honest)[attackers]
    elif threat.level == "forensic":
        errors[attackers] = (
            frame.update[:, None] + frame.honest(np.array([record.broadcast_norm]))
        )[attackers]
    else:
        low, high = threat.scales
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
                    low * moved + abs(low - 1) * honest[row],
                    high * moved + abs(high - 1) * honest[row],
                )
            # An update that may be too long for the server may end up as zero; one that is clipped
            # only comes closer.
            errors[row] = np.where(
                reach > record.reject_norm, np.maximum(errors[row], honest[row]), errors[row]
            )
            errors[row] = np.minimum(errors[row], record.update_clip + honest[row])
        if threat.comparator == "scaled":
            scaled = np.maximum(abs(low - 1) + low * kappa, abs(high - 1) + high * kappa)
            kappa = np.where(attackers, scaled, kappa)
    return kappa, honest, errors * up(16)


def _removed(frame: Frame, outside: NDArray[np.bool_], most: int) -> tuple[float, Float64]:
    """Mean Lipschitz constant over the others, and changes (participants,), when some of
    ``outside`` never took part.

    Removing the share P from a weighted mean moves it by || sum over the removed of p (u - mean) ||
    / (1 - P). The same algebra bounds the mean of the Lipschitz constants over whoever is left.
    """
    weight, kappa = frame.weight, frame.kappa
    candidates = np.sort(weight[outside])
    left = weight[~outside].sum() + candidates[: max(candidates.size - most, 0)].sum()
    if left <= 0:
        raise ConditionError(
            "someone-left", f"round {frame.record.index}", f"weights={weight.tolist()!r}"
        )
    mean = (weight * kappa).sum() / weight.sum()
    if candidates.size <= most:
        others = (weight * kappa)[~outside].sum() / left
    else:
        others = min(
            kappa.max(), mean + float(_top(weight * np.maximum(mean - kappa, 0), most)) / left
        )
    return float(others) * up(8 * weight.size), frame.gap / left * up(weight.size)


def _effect(
    frame: Frame,
    threat: Threat,
    norm: Float64,
    distance: Float64,
    reach: float,
    attackers: NDArray[np.bool_],
) -> tuple[float, Float64, Float64]:
    """What one round does to the distance between the runs.

    Returns:
        The Lipschitz constant of the comparison run's round, what each participant adds
        (participants, lanes), and how long an honest update of either run may be (lanes,); 0 where
        the server would not touch any.
    """
    record, step, kappa = frame.record, frame.record.server_step, frame.kappa
    # Of the broadcast that was not observed only this is known. It also covers the one that was.
    sent_norm = np.maximum(
        record.broadcast_norm, np.minimum(record.broadcast_norm + distance, reach) * up(2)
    )
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
        raise ConditionError("honest-updates-intact", where, f"outcome={one.outcome!r}")
    longest = np.zeros_like(norm)
    if frame.room < inf:
        # An honest update moves with the weights by at most (1 + kappa) D from one run to the
        # other.
        drifted = (frame.update[:, None] + (1 + frame.kappa[:, None]) * distance) * up(4)
        length = np.minimum(frame.honest(sent_norm), drifted)
        if threat.level != "removal":
            length[attackers] = honest[
                attackers
            ]  # what attackers sent says nothing of their honest updates
        elif named:
            length[attackers] = 0.0  # the comparison run is without them
        longest = length[~frame.absent].max(axis=0, initial=0.0)
    return float(lipschitz) * up(attackers.size), added, longest


def propagate(
    frames: Sequence[Frame], threat: Threat, norm: Float64
) -> tuple[Float64, Float64, ConditionError | None]:
    """The recursion over rounds, for one backdoor norm per lane.

    D_t = min(2 rho_t, kappa_t D_{t-1} + s * sum over the attackers of p_i e_{i,t}). The sum is kept
    apart per client, so that for an unknown set of m attackers the m largest totals over *all*
    rounds are taken. Where 2 rho_t is the smaller, it takes the place of all that came before.

    Returns:
        D after each round (rounds, lanes), inf in lanes where an honest update may have been
        touched; the contraction of each round; and the reason for the first such lane.
    """
    clients = (
        threat.clients
        if threat.clients is not None
        else sorted({one for frame in frames for one in frame.ids})
    )
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
            found = f"updates of norm up to {float(longest.max())!r} where only {frame.room!r} "
            found += "pass untouched"
            reason = ConditionError("honest-updates-intact", f"round {record.index}", found)
        touched |= longest > frame.room
        base, totals = base * lipschitz, totals * lipschitz
        totals[[row[frame.ids[at]] for at in np.flatnonzero(attackers)]] += added[attackers]
        distance = (base + _top(totals, most)) * up(len(clients))
        capped = distance > 2 * record.clip
        base[capped], totals[:, capped] = 2 * record.clip, 0.0
        distance = np.minimum(distance, 2 * record.clip)
        reach = record.clip + record.noise_norm
        trace.append(np.where(touched, inf, distance))
        contractions.append(lipschitz)
    return np.array(trace), np.array(contractions), reason


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far apart the final models of the honest and the attacked run can be.

    Attributes:
        value: Bound on the l2 distance of all parameters after the last round; a prediction is
            certified where this is strictly below its radius.
        trace: The bound after each round, shape (rounds,).
        contraction: Factor by which each round shrinks an earlier distance, shape (rounds,).
        threat: What was bounded.
        checked: Names of the conditions that were checked in the ledger, all of them met, out of
            ``CONDITIONS``.
        trusted: Names of what no ledger can show and the caller answers for, out of ``TRUSTED``.
    """

    value: float
    trace: Float64
    contraction: Float64
    threat: Threat
    checked: tuple[str, ...]
    trusted: tuple[str, ...]


def deviation(rounds: Sequence[Round], threat: Threat) -> Deviation:
    r"""Bound on the distance between the final models of two runs that differ by a threat.

    .. math::
        D_t = \min\Bigl(2\rho_t,\; \kappa_t D_{t-1} + s \sum_{i \in A_t} p_i e_{i,t}\Bigr), \qquad
        \kappa_t = 1 - s \Bigl(1 - \sum_i p_i \kappa_i\Bigr), \qquad
        \kappa_i = \max(|1 - \eta\lambda|, |1 - \eta(\lambda + B^2/2)|)^{\tau}

    where :math:`e_{i,t}` bounds the distance between the submitted update and the honest one from
    the same weights.

    Assumes:
        The conditions in ``CONDITIONS``, which are checked, and those in ``Deviation.trusted``.

    Args:
        rounds: The ledger, every round of it in order; the runs agree before the first of them.
        threat: Who attacks, when and how.

    Returns:
        The bound, never below the exact value of the recursion, with its trace.

    Raises:
        ConditionError: The run breaks a condition; the message names it and quotes the value.
        ValueError: The ledger is empty, or the threat attacks a round that is not in it.

    Example:
        >>> import dataclasses
        >>> client = Participant(
        ...     client=0, weight=0.5, lr=0.1, decay=(0.1, 0.1), input_norm=1.4,
        ...     batch_sizes=[10, 10],
        ...     loss="softmax cross-entropy", optimizer="sgd", momentum=0.0,
        ...     update_norm=0.2, gap=0.01)
        >>> other = dataclasses.replace(client, client=1)
        >>> record = Round(
        ...     index=1, participants=[client, other], broadcast_norm=0.0,
        ...     aggregator="mean", model="linear",
        ...     dtype="float64", weights_from="server",
        ...     seed=0)
        >>> deviation([record], Threat("removal", clients=[0])).value
        0.0200...
        >>> moved = Threat("feature", clients=[0], norm=0.1, flips=False, per_batch=1)
        >>> deviation([record], moved).value
        0.0014...

    References:
        "A certificate for one trained model", in the documentation.
    """
    checked = conditions(rounds, threat)
    frames = [Frame.of(record, threat) for record in rounds]
    trace, contractions, reason = propagate(frames, threat, np.array([threat.norm or 0.0]))
    if reason is not None:
        raise reason
    return Deviation(
        value=float(trace[-1, 0]),
        trace=trace[:, 0],
        contraction=contractions,
        threat=threat,
        checked=(*checked, "honest-updates-intact"),
        trusted=trusted(rounds, threat),
    )
