"""How far poisoned clients can have moved one trained model, and what that leaves certified.

Two runs are coupled: same initial weights, participants, mini-batches and server noise. One is
honest, in the other the threat is carried out (or, at the removal level, the clients never
existed). One of them was run and left a ledger; the bound D on the distance of the two final models
holds whichever of the two it was. A prediction that no change of the parameters smaller than its
radius can alter is therefore the same in both runs as soon as D < radius.

Equations are those of "A certificate for one trained model", in the documentation; how rounding is
covered is said in :mod:`rsfl.bounds.frame`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from rsfl._checks import Float64, Int64
from rsfl.bounds._safe import up
from rsfl.bounds.attack import Lanes
from rsfl.bounds.condition import ConditionError
from rsfl.bounds.examination import examined, trusted
from rsfl.bounds.frame import Frame, largest_sums
from rsfl.bounds.poisoned import FeatureThreat
from rsfl.bounds.records import Round
from rsfl.bounds.threat import Threat

__all__ = ["Deviation", "Path", "deviation", "framed", "propagate"]


def framed(rounds: Sequence[Round], threat: Threat) -> list[Frame]:
    """The arrays of each round, once the conditions were checked."""
    _, unruly = examined(rounds, threat)
    return [Frame.of(record, odd) for record, odd in zip(rounds, unruly, strict=True)]


@dataclass(frozen=True, eq=False)
class Path:
    """What the recursion gave, for L lanes and T rounds.

    Attributes:
        trace: (T, L) D after each round.
        contraction: (T,) Lipschitz constant of each round's comparison map, in the first lane.
        touched: Clients, named by no threat, whose honest updates a limit may touch, or of whose
            training nothing is known, in the first lane.
        clipped: For each attacked round whether the attackers' honest updates may be clipped in the
            comparison run, in the first lane.
        alone: The first round from which nobody is left, in the first lane; None if there is none.
    """

    trace: Float64
    contraction: Float64
    touched: tuple[int, ...]
    clipped: tuple[bool, ...]
    alone: Round | None = None


def propagate(
    frames: Sequence[Frame], threat: Threat, norm: Float64, most: Int64 | None = None
) -> Path:
    """Eq. (3), the recursion over rounds, for one backdoor norm and one number of attackers per
    lane.

    What the unknown clients add is kept apart per client, so that for a set of m of them the m
    largest totals over *all* rounds are taken. Where 2 rho_t is the smaller, it takes the place of
    all that came before.
    """
    most = np.full(norm.shape, threat.at_most) if most is None else most
    everyone = np.unique(np.concatenate([frame.ids for frame in frames]))
    if not most.any():
        everyone = everyone[:0]
    base, totals = np.zeros_like(norm), np.zeros((len(everyone), norm.size))
    distance, reach = np.zeros_like(norm), inf
    trace, contraction, clipped = [], [], []
    touched, void, alone = set[int](), np.zeros(norm.shape, bool), None
    for frame in frames:
        record = frame.record
        effect = threat.effect(frame, Lanes(norm, most, distance, reach))
        base = base * effect.kappa + effect.base
        if len(everyone):
            totals *= effect.kappa
            totals[np.searchsorted(everyone, frame.ids)] += effect.added
        distance = (base + largest_sums(totals, most)) * up(len(everyone) + 4)
        capped = distance > 2 * record.clip
        base[capped], totals[:, capped] = 2 * record.clip, 0.0
        distance = np.minimum(distance, 2 * record.clip)
        reach = record.clip + record.noise_norm
        if effect.void is not None:
            void |= effect.void
            alone = record if alone is None and void[0] else alone
        trace.append(np.where(void, inf, distance))
        contraction.append(float(effect.kappa[0]))
        touched.update(frame.ids[effect.touched].tolist())
        if threat.attacks(record.index):
            clipped.append(effect.clipped)
    return Path(
        np.array(trace), np.array(contraction), tuple(sorted(touched)), tuple(clipped), alone
    )


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far apart the final models of the honest and the attacked run can be.

    Attributes:
        value: Bound on the l2 distance of all parameters after the last round; a prediction is
            certified where this is strictly below its radius.
        trace: The bound after each round, shape (rounds,).
        contraction: Factor by which each round shrinks an earlier distance, shape (rounds,).
        threat: What was bounded.
        comparison: Whether the attackers are ``"honest"`` in the run that is compared with, or
            ``"honest and clipped"``: in some round an honest update of theirs may have been
            shortened like any other, and the sharper of two bounds rests on that.
        touched: Clients that the threat does not name and of whom no contraction is claimed: a
            limit may touch their updates in one of the runs, or their training breaks a condition.
            Each of them counts with what its update may differ by in the two runs.
        checked: Names of the conditions that were checked in the ledger, all of them met, out of
            ``CONDITIONS``.
        trusted: Names of what no ledger can show and the caller answers for, out of ``TRUSTED``.
    """

    value: float
    trace: Float64
    contraction: Float64
    threat: Threat
    comparison: Literal["honest", "honest and clipped"]
    touched: tuple[int, ...]
    checked: tuple[str, ...]
    trusted: tuple[str, ...]


def deviation(rounds: Sequence[Round], threat: Threat) -> Deviation:
    r"""Bound on the distance between the final models of two runs that differ by a threat.

    .. math::
        D_t = \min\Bigl(2\rho_t,\; \kappa_t D_{t-1} + s \sum_{i \in A_t} p_i e_{i,t}\Bigr), \qquad
        \kappa_t = 1 - s \Bigl(1 - \sum_i p_i \kappa_i\Bigr),

    with :math:`\kappa_i = \max(|1 - \eta\lambda|, |1 - \eta(\lambda + B^2/2)|)^{\tau}`,
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
        >>> from rsfl.bounds import FeatureThreat, Participant, RemovalThreat
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
        >>> deviation([record], RemovalThreat(clients=[0])).value
        0.0200...
        >>> moved = FeatureThreat(clients=[0], norm=0.1, flips=False, per_batch=1)
        >>> deviation([record], moved).value
        0.0014...

    References:
        "A certificate for one trained model", in the documentation.
    """
    checked, unruly = examined(rounds, threat)
    frames = [Frame.of(record, odd) for record, odd in zip(rounds, unruly, strict=True)]
    norm = threat.norm if isinstance(threat, FeatureThreat) else 0.0
    path = propagate(frames, threat, np.array([norm]))
    if path.alone is not None:
        weights = [one.weight for one in path.alone.participants]
        raise ConditionError("someone-left", f"round {path.alone.index}", f"weights={weights!r}")
    return Deviation(
        value=float(path.trace[-1, 0]),
        trace=path.trace[:, 0],
        contraction=path.contraction,
        threat=threat,
        comparison="honest and clipped" if any(path.clipped) else "honest",
        touched=path.touched,
        checked=checked,
        trusted=trusted(rounds, threat),
    )
