"""How strong a threat may be before it can reach a prediction: the largest norm, the most
attackers, the latest round.

The deviation bound turned round: each function takes the radii of many predictions at once.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsfl._checks import Float64, Floats, Int64, numbers, unwrapped
from rsfl.bounds._safe import up
from rsfl.bounds.condition import ConditionError
from rsfl.bounds.poisoning import framed, propagate
from rsfl.bounds.records import Round
from rsfl.bounds.threat import FeatureThreat, Threat

__all__ = ["largest_norm", "latest_round", "most_attackers"]


def largest_norm(rounds: Sequence[Round], threat: Threat, radius: ArrayLike) -> Floats:
    """The largest backdoor norm, all else in a feature-level threat equal, that still leaves
    predictions certified.

    Args:
        rounds: The ledger, as for :func:`deviation`.
        threat: A threat of the feature level; its own norm is not used.
        radius: Certified radius of each prediction in parameter space, at least 0.

    Returns:
        A norm for each radius, at most 2**400: :func:`deviation` at this norm and at every smaller
        one is below the radius. 0 promises nothing.

    Raises:
        ConditionError, ValueError: As for :func:`deviation`; also if the threat is of another
            level.
    """
    if not isinstance(threat, FeatureThreat):
        raise ValueError(f"threat must be a FeatureThreat, got {threat!r}")
    radii = numbers("radius", radius, 0.0)
    wanted, where = np.unique(radii, return_inverse=True)
    frames = framed(rounds, threat)

    def holds(norm: Float64) -> NDArray[np.bool_]:
        # The margin is for rounding that depends on how many lanes are summed at once.
        below: NDArray[np.bool_] = propagate(frames, threat, norm).trace[-1] * up(200) < wanted
        return below

    # Exponents first, then digits: each norm kept was itself found certified, and D is monotone in
    # the norm.
    low, smallest, largest = (
        np.zeros_like(wanted),
        np.full_like(wanted, -401.0),
        np.full_like(wanted, 401.0),
    )
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


def most_attackers(rounds: Sequence[Round], threat: Threat, radius: ArrayLike) -> Int64:
    """The largest number of unknown attackers, or of removed clients, that still leaves predictions
    certified.

    Args:
        rounds: The ledger, as for :func:`deviation`.
        threat: A threat by an unknown set of clients; its own ``at_most`` is not used.
        radius: Certified radius of each prediction in parameter space, at least 0.

    Returns:
        For each radius the largest m such that the threat with ``at_most=m`` is certified; 0
        promises nothing. A prediction that no set of clients can change gets the number of clients
        in the ledger (for a removal, a number that leaves someone in every round).

    Raises:
        ConditionError, ValueError: As for :func:`deviation` with one attacker; also if the threat
            names its clients.
    """
    if not threat.at_most:
        raise ValueError(
            f"threat must be by an unknown set of clients, give it at_most=1, got {threat!r}"
        )
    radii = numbers("radius", radius, 0.0)
    frames = framed(rounds, threat)
    everyone = {one.client for record in rounds for one in record.participants}
    unknown, bounds = len(everyone - set(threat.clients)), np.zeros(0)
    norm = threat.norm if isinstance(threat, FeatureThreat) else 0.0
    while len(bounds) < unknown and not (bounds[-1:] >= radii.max(initial=0.0)).any():
        most = np.arange(len(bounds), min(2 * len(bounds) + 8, unknown)) + 1
        try:
            found = propagate(frames, threat, np.full(most.shape, norm), most).trace[-1]
        except ConditionError:
            if not len(bounds):
                propagate(frames, threat, np.array([norm]), np.array([1]))
            break  # with so many removed, no one is left
        # Sums over other numbers of lanes round otherwise.
        bounds = np.concatenate([bounds, found * up(200)])
    worst = np.maximum.accumulate(np.append(bounds, np.inf))
    return np.searchsorted(worst, radii, side="left").astype(np.int64)


def latest_round(rounds: Sequence[Round], threat: Threat, radius: ArrayLike) -> Int64:
    """The latest round in which a one-round attack still leaves predictions certified, as does any
    round before it.

    Args:
        rounds: The ledger, as for :func:`deviation`.
        threat: A threat of any level but removal; its own rounds are not used.
        radius: Certified radius of each prediction in parameter space, at least 0.

    Returns:
        For each radius the index of that round, or the first index less 1 where not even the first
        round's attack is certified.

    Raises:
        ConditionError, ValueError: As for :func:`deviation`; also if the threat is a removal.
    """
    alone = [threat.in_round(record.index) for record in rounds]
    radii = numbers("radius", radius, 0.0)
    frames = framed(rounds, replace(threat, rounds=None))  # type: ignore[call-arg]
    norm = np.array([threat.norm if isinstance(threat, FeatureThreat) else 0.0])
    # Before the attacked round the runs agree. The clip and noise of the round before it count.
    bounds = [
        propagate(frames[max(at - 1, 0) :], one, norm).trace[-1, 0] for at, one in enumerate(alone)
    ]
    return (
        rounds[0].index
        - 1
        + np.searchsorted(np.maximum.accumulate(bounds), radii, side="left").astype(np.int64)
    )
