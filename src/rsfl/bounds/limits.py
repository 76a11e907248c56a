"""How strong a threat may be before it can reach a prediction: the largest norm, the most
attackers, the latest round.

The deviation bound turned round: each function takes the radii of many predictions at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import ArrayLike

from rsfl._checks import Float64, Floats, Int64, numbers, unwrapped
from rsfl.bounds._safe import up
from rsfl.bounds.frame import Frame
from rsfl.bounds.poisoned import FeatureThreat
from rsfl.bounds.poisoning import deviation, framed, propagate
from rsfl.bounds.records import Round
from rsfl.bounds.threat import Threat

__all__ = ["largest_norm", "latest_round", "most_attackers"]

_RESOLUTION = 2.0**-46
"""How far below the largest norm the result may lie, relatively."""


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

    lanes = max(1, 2**21 // max(len(frame.ids) for frame in frames))  # so many fit in memory

    def bound(norm: Float64) -> Float64:
        parts = np.split(norm, range(lanes, len(norm), lanes))
        found = np.concatenate([propagate(frames, threat, part).trace[-1] for part in parts])
        return np.asarray(found * _lanes_apart(frames), dtype=np.float64)

    # The bound is monotone in the norm. Powers of two first, then digits: each norm kept was itself
    # found certified.
    powers = np.exp2(np.arange(-400.0, 401.0, 8.0))
    found = np.maximum.accumulate(bound(powers))
    above = np.searchsorted(found, wanted, side="left")  # the first power that is too large
    low = np.where(above > 0, powers[above - 1], 0.0)
    high = powers[np.minimum(above, len(powers) - 1)]
    sure = above == len(powers)
    ends = np.stack([found[np.maximum(above - 1, 0)], found[np.minimum(above, len(powers) - 1)]])
    active = np.flatnonzero(~sure & (above > 0))
    low[active], high[active] = _closed(
        bound, wanted[active], low[active], high[active], ends[:, active]
    )
    return unwrapped(low[where].reshape(radii.shape))


def _closed(
    bound: Callable[[Float64], Float64],
    wanted: Float64,
    low: Float64,
    high: Float64,
    ends: Float64,
) -> tuple[Float64, Float64]:
    """Norms next to each other, of which the bound is below ``wanted`` at the first and not at the
    second.

    A bracketing secant in logarithms (the Illinois rule): each step keeps bound(low) < wanted <=
    bound(high). A step stays a hair away from the ends, which closes the bracket from the other
    side once the secant has found the place.
    """
    with np.errstate(divide="ignore"):
        goal, below, above = np.log(wanted), np.log(ends[0]), np.log(ends[1])
    below, above = np.maximum(below - goal, -800.0), np.minimum(above - goal, 800.0)
    open_, last = np.arange(len(low)), np.zeros(len(low))
    for turn in range(200):
        open_ = open_[high[open_] > low[open_] * (1 + _RESOLUTION)]
        if not len(open_):
            break
        a, b = np.log(low[open_]), np.log(high[open_])
        share = below[open_] / np.minimum(below[open_] - above[open_], -1e-300)
        if turn % 8 == 7:  # a function with a kink can hold the secant up
            share = np.full(len(open_), 0.5)
        hair = np.minimum(_RESOLUTION / 4 / (b - a), 0.5)
        middle = np.exp(a + np.clip(share, hair, 1 - hair) * (b - a))
        middle = np.clip(middle, np.nextafter(low[open_], inf), np.nextafter(high[open_], 0))
        value = bound(middle)
        good = value < wanted[open_]
        with np.errstate(divide="ignore"):
            error = np.clip(np.log(value) - goal[open_], -800.0, 800.0)
        # The end that stays twice is drawn nearer.
        above[open_] *= np.where(good & (last[open_] > 0), 0.5, 1.0)
        below[open_] *= np.where(~good & (last[open_] < 0), 0.5, 1.0)
        last[open_] = np.where(good, 1.0, -1.0)
        low[open_], high[open_] = (
            np.where(good, middle, low[open_]),
            np.where(good, high[open_], middle),
        )
        below[open_] = np.where(good, np.minimum(error, -1e-300), below[open_])
        above[open_] = np.where(good, above[open_], np.maximum(error, 1e-300))
    return low, high


def _lanes_apart(frames: Sequence[Frame]) -> float:
    """Factor for rounding that depends on how many lanes are summed at once: what is found for many
    holds for one."""
    return up(200 + 4 * sum(len(frame.ids) for frame in frames))


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
    deviation(rounds, replace(threat, at_most=1))  # refuses what cannot be bounded
    norm = threat.norm if isinstance(threat, FeatureThreat) else 0.0
    # The bound is monotone in the number. Each number kept was itself found certified.
    wanted, where = np.unique(radii, return_inverse=True)
    low = np.zeros(wanted.shape, dtype=np.int64)
    high = np.full(wanted.shape, len(everyone - set(threat.clients)) + 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        most, lane = np.unique(np.maximum(middle, 1), return_inverse=True)
        found = propagate(frames, threat, np.full(most.shape, norm), most).trace[-1]
        good = (found[lane] * _lanes_apart(frames) < wanted) & (high - low > 1)
        low, high = np.where(good, middle, low), np.where(good, high, np.maximum(middle, low + 1))
    return np.asarray(low[where].reshape(radii.shape), dtype=np.int64)


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
