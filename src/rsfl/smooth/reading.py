"""Readings: what votes promise, and how it follows from them. Numbers in, numbers out; no model is
asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from rsfl import bounds
from rsfl._checks import Float64, Int64, choice, count, level, number, stored
from rsfl.assumptions import (
    COUNTED_IF_WITHSTOOD,
    FIXED_NUMBER,
    FRESH_VOTES,
    ONE_FUNCTION,
    OPTIONAL_STOPPING,
    OTHER_PARTS,
    PER_INPUT,
    Assumption,
)
from rsfl.assumptions import (
    spot_checked as found_on_a_spot,
)
from rsfl.noise import Law

__all__ = [
    "ABSTAIN",
    "CONFIDENCE",
    "AtRadius",
    "ByCount",
    "Confidence",
    "Counted",
    "MostVoted",
    "Numbers",
    "Reading",
    "RunnerUp",
    "Sequential",
    "allowed",
    "assumed",
    "reading_from",
    "reading_to",
]

ABSTAIN = -1
"""The label of an input on which the smoothed classifier makes no statement."""

RunnerUp: TypeAlias = Literal["complement", "bounded"]
Confidence: TypeAlias = Literal["clopper-pearson", "hoeffding"]

Bound: TypeAlias = Callable[[Any, Any, float], Any]
CONFIDENCE: dict[str, tuple[Bound, Bound]] = {
    "clopper-pearson": (bounds.clopper_pearson_lower, bounds.clopper_pearson_upper),
    "hoeffding": (
        lambda k, n, alpha: bounds.hoeffding_lower(k / n, n, alpha),
        lambda k, n, alpha: bounds.hoeffding_upper(k / n, n, alpha),
    ),
}
"""Lower and upper bounds on a probability, from successes, trials and level."""


class Counted(NamedTuple):
    """Votes as arrays: (B, K) that selected the class, (B, K) others that bound it, and (B,) how
    many of the others were cast, those for no class included."""

    selection: Int64
    counts: Int64
    n: Int64

    @property
    def chosen(self) -> Int64:
        """(B,) the class that the selection names."""
        return np.asarray(self.selection.argmax(axis=1))

    @property
    def successes(self) -> Int64:
        """(B,) the other votes for that class."""
        return np.asarray(self.counts[np.arange(len(self.counts)), self.chosen])

    @property
    def trials(self) -> Int64:
        """(B,) the number of votes, 1 where none was cast: no success of one says nothing
        either."""
        return np.maximum(self.n, 1)


class Numbers(NamedTuple):
    """What a certificate says of each input: (B,) arrays."""

    label: Int64
    radius: Float64
    p_lower: Float64
    p_upper: Float64


@dataclass(frozen=True)
class Sequential:
    """What stopped votes that were looked at while they came in.

    Attributes:
        radius: The radius that was asked for.
        alpha: The level of the test.
        n_max: Votes after which an undecided input was given up.
    """

    radius: float
    alpha: float
    n_max: int

    def __post_init__(self) -> None:
        stored(self, radius=number("radius", self.radius, 0, np.inf, open_high=True))
        stored(self, alpha=level("alpha", self.alpha), n_max=count("n_max", self.n_max, 1))


@dataclass(frozen=True)
class ByCount:
    """Radii from votes whose number was fixed beforehand.

    ``complement`` bounds the label's probability at alpha and gives all the rest to one rival.
    ``bounded`` spends half of alpha on the label and half on the largest other count, which bounds
    every rival: the upper bound grows with the count.
    """

    runner_up: RunnerUp = "complement"
    confidence: Confidence = "clopper-pearson"

    name: ClassVar[str] = "radius"
    statistics: ClassVar[tuple[Assumption, ...]] = (FRESH_VOTES, FIXED_NUMBER)

    def __post_init__(self) -> None:
        choice("runner_up", self.runner_up, get_args(RunnerUp))
        choice("confidence", self.confidence, get_args(Confidence))

    def enough(self, n: int, alpha: float) -> None:
        """Raise ValueError if not even n votes of one mind certify anything."""
        least = _least(self._spent(alpha), self.confidence)
        if n < least:
            raise ValueError(
                f"n must be at least {least} to certify anything at alpha={alpha!r}, got {n}"
            )

    def _spent(self, alpha: float) -> float:
        return alpha if self.runner_up == "complement" else alpha / 2

    def numbers(self, votes: Counted, law: Law, dim: int, alpha: float) -> Numbers:
        """What the votes promise at alpha."""
        lower, upper = CONFIDENCE[self.confidence]
        cast = votes.n > 0
        p_a = np.asarray(lower(votes.successes, votes.trials, self._spent(alpha)))
        if self.runner_up == "complement":
            # 1 - p_a is exact from 1/2 on; below it is rounded up, as bounds of rivals are.
            p_b = np.where(p_a < 0.5, np.nextafter(1 - p_a, 1), 1 - p_a)
            radius = law.radius(p_a, dim=dim)
        else:
            others = votes.counts.copy()
            others[np.arange(len(others)), votes.chosen] = 0
            bound = upper(others.max(axis=1, initial=0), votes.trials, self._spent(alpha))
            p_b = np.where(cast, np.minimum(bound, np.nextafter(1 - p_a, 1)), 1.0)
            radius = law.radius(p_a, p_b, dim=dim)
        label = np.where(radius > 0, votes.chosen, ABSTAIN)
        return Numbers(label, np.asarray(radius), p_a, np.asarray(p_b))


@lru_cache(maxsize=64)
def _least(alpha: float, confidence: Confidence) -> int:
    """Votes of one mind that certify something: of a tiny model as dear as a third of its votes."""
    lower, _ = CONFIDENCE[confidence]
    return bounds.minimum_trials(alpha, lower=lower)


@dataclass(frozen=True)
class AtRadius:
    """One radius, certified or not, by the sequential test.

    Its wealth is a nonnegative martingale of mean 1 where the label is no more probable than p0, so
    that at whichever vote the counting stopped it reaches 1 / alpha with probability alpha at most
    (Ville): the test may read votes that were stopped for any reason.
    """

    radius: float

    name: ClassVar[str] = "at"
    statistics: ClassVar[tuple[Assumption, ...]] = (FRESH_VOTES, OPTIONAL_STOPPING)

    def __post_init__(self) -> None:
        stored(self, radius=number("radius", self.radius, 0, np.inf, open_high=True))

    def numbers(self, votes: Counted, law: Law, dim: int, alpha: float) -> Numbers:
        """Exactly the radius where the label is certified to be more probable than it takes."""
        p0 = law.probability(self.radius, dim=dim)
        decided = self.decided(votes, p0, alpha)
        return Numbers(
            np.where(decided, votes.chosen, ABSTAIN),
            np.where(decided, self.radius, 0.0),
            np.where(decided, p0, 0.0),
            np.where(decided, np.nextafter(1 - p0, 1), 1.0),
        )

    @staticmethod
    def decided(votes: Counted, p0: float, alpha: float) -> NDArray[np.bool_]:
        """(B,) where the test decides that the label is more probable than p0."""
        decision = bounds.sequential_decision(votes.successes, votes.trials, p0, alpha)
        return np.equal(decision, 1)


@dataclass(frozen=True)
class MostVoted:
    """The most voted class where it is significantly ahead of the second, without a radius."""

    name: ClassVar[str] = "prediction"
    statistics: ClassVar[tuple[Assumption, ...]] = (FIXED_NUMBER,)

    def enough(self, n: int, alpha: float) -> None:
        """Raise ValueError if not even n votes of one mind tell a class from another."""
        least = bounds.top_two_minimum_trials(alpha)
        if n < least:
            raise ValueError(
                f"n must be at least {least} to predict anything at alpha={alpha!r}, got {n}"
            )

    def numbers(self, votes: Counted, law: Law, dim: int, alpha: float) -> Numbers:
        """The class, with a radius of 0."""
        ordered = np.sort(votes.counts, axis=1)
        first = ordered[:, -1]
        second = ordered[:, -2] if ordered.shape[1] > 1 else np.zeros_like(first)
        ahead = np.asarray(bounds.top_two_p_value(first, second)) <= alpha
        none = np.zeros(len(first))
        label = np.where(ahead, votes.counts.argmax(axis=1), ABSTAIN)
        return Numbers(label, none, none, none + 1)


Reading: TypeAlias = ByCount | AtRadius | MostVoted
_SPOTTED = found_on_a_spot(ONE_FUNCTION)
_READINGS: dict[str, type[Reading]] = {kind.name: kind for kind in (ByCount, AtRadius, MostVoted)}


def allowed(reading: Reading, rule: Sequential | None, condition: str) -> None:
    """Raise ValueError where votes that were stopped so, or had to meet a condition, do not allow a
    reading."""
    if rule is not None and not isinstance(reading, AtRadius):
        raise ValueError(
            f"a {reading.name} must be of votes whose number was fixed, got votes that a "
            f"sequential test stopped at radius {rule.radius}: no bound for a fixed number holds "
            f"for them; certificate_at reads them"
        )
    if condition and isinstance(reading, MostVoted):
        raise ValueError(f"a prediction must be of all votes, got those that had to be {condition}")
    if condition and isinstance(reading, ByCount) and reading.runner_up != "complement":
        raise ValueError(
            f"runner_up must be 'complement' for votes that had to be {condition}, got "
            f"{reading.runner_up!r}: what missed it may all be for one rival"
        )


def assumed(
    reading: Reading,
    law: Law,
    *,
    spot_checked: bool = False,
    touched: str = "",
    condition: str = "",
    judged: tuple[Assumption, ...] = (),
) -> tuple[Assumption, ...]:
    """What a reading of votes under this law rests on, where it touched a part of the inputs, or
    where votes had to meet a condition."""
    function = _SPOTTED if spot_checked else ONE_FUNCTION
    parts = (OTHER_PARTS,) if touched else ()
    told = (COUNTED_IF_WITHSTOOD, *judged) if condition else ()
    return (*reading.statistics, PER_INPUT, function, *law.assumptions, *parts, *told)


def reading_to(reading: Reading) -> dict[str, Any]:
    """A reading as JSON takes it."""
    return {"name": reading.name} | vars(reading)


def reading_from(document: Mapping[str, Any]) -> Reading:
    """The reading that :func:`reading_to` described."""
    values = dict(document)
    return _READINGS[choice("reading", values.pop("name"), tuple(_READINGS))](**values)
