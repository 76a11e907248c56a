"""Who attacks a federated run, when, and with what power: five threats, one class each. The two by
poisoned data are in a file of their own.

From the weakest attacker to the strongest, then two questions about the past. What sets one level
apart from another is a method of its class.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rsfl._checks import choice, count, counts, stored
from rsfl.bounds.attack import (
    Effect,
    Lanes,
    Rows,
    Submitted,
    carried_out,
    left_out,
)
from rsfl.bounds.condition import ConditionError
from rsfl.bounds.frame import Frame

__all__ = ["ClientThreat", "ForensicThreat", "RemovalThreat", "Threat", "TimedThreat", "ids_of"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, repr=False, kw_only=True)
class Threat(ABC):
    """What every threat says: by whom.

    Abstract: a threat is a :class:`FeatureThreat`, a :class:`SampleThreat`, a
    :class:`ClientThreat`, a :class:`ForensicThreat` or a :class:`RemovalThreat`.

    Args:
        clients: Ids of the attackers.
        at_most: Besides them, any unknown set of up to this many clients.

    Raises:
        TypeError, ValueError: A number out of its range, or a threat that is none: it names nobody,
            no round, no sample.
    """

    clients: Sequence[int] = ()
    at_most: int = 0

    levels: ClassVar[dict[str, type["Threat"]]] = {}
    level: ClassVar[str]
    trusted: ClassVar[tuple[str, ...]]
    """Names of what no ledger can show and the caller answers for at this level."""

    def __init_subclass__(cls) -> None:
        if "level" not in vars(cls):
            return
        known = Threat.levels.setdefault(cls.level, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"level must be a name of its own: saved certificates of level {cls.level!r} are "
                f"read as {known.__name__}, got it for {cls.__name__}"
            )
        Threat.levels[cls.level] = cls  # defined anew, as in a notebook

    def __new__(cls, *arguments: Any, **settings: Any) -> Self:
        """Refuse the abstract class, which once took the level as an argument."""
        if cls is Threat:
            _refused(arguments)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        stored(
            self, clients=ids_of("clients", self.clients), at_most=count("at_most", self.at_most)
        )
        if not self.clients and not self.at_most:
            raise ValueError(
                f"clients or at_most must name somebody: a threat by nobody certifies everything, "
                f"got clients={self.clients!r}, at_most={self.at_most!r}"
            )

    def __repr__(self) -> str:
        """What is not as it is by default."""
        given = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if getattr(self, one.name) != _default(one.default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def of_inputs(self) -> bool:
        """Whether its numbers are norms of inputs, not of what frozen layers make of them."""
        return False

    @property
    def rounds(self) -> Sequence[int] | None:
        """Indices of the attacked rounds; None for all of them."""
        return None

    @property
    def left_out(self) -> frozenset[int]:
        """The clients of whose data, code and settings nothing is asked."""
        return frozenset()

    def attacks(self, index: int) -> bool:
        """Whether the round of this index is attacked."""
        return self.rounds is None or index in self.rounds

    def in_round(self, index: int) -> "Threat":
        """The same threat in this round alone."""
        raise ValueError(
            f"threat must be one with attacked rounds, got {self!r}: what it asks is about all"
        )

    @abstractmethod
    def effect(self, frame: Frame, lanes: Lanes) -> Effect:
        """What a round does to the distance between the two runs."""

    def to_dict(self) -> dict[str, Any]:
        """The threat in numbers and texts that JSON can hold."""
        settings = asdict(self)
        if isinstance(settings.get("samples"), Mapping):
            settings["samples"] = list(settings["samples"].items())
        return {"level": self.level, **settings}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> "Threat":
        """The threat that `to_dict` gave, possibly through JSON.

        Raises:
            ValueError: There is no such threat.
        """
        kind = Threat.levels[choice("level", settings.get("level"), tuple(Threat.levels))]
        given = {name: value for name, value in settings.items() if name != "level"}
        if unknown := sorted(set(given) - {one.name for one in fields(kind)}):
            raise ValueError(f"a {kind.__name__} has no {unknown!r}")
        if isinstance(given.get("samples"), list):
            given["samples"] = dict(given["samples"])
        if isinstance(given.get("scale"), list):
            given["scale"] = tuple(given["scale"])
        return kind(**given)

    def _rows(self, frame: Frame) -> tuple[Rows, Rows]:
        """Rows of the named, and of the other clients that may be among the unknown."""
        named = np.isin(frame.ids, np.array(self.clients, dtype=np.int64))
        others = ~named if self.at_most else np.zeros(len(frame.ids), bool)
        return np.flatnonzero(named), np.flatnonzero(others)


@dataclass(frozen=True, repr=False, kw_only=True)
class TimedThreat(Threat):
    """A threat in some of the rounds."""

    rounds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is not None:
            stored(self, rounds=ids_of("rounds", self.rounds))
            if not self.rounds:
                raise ValueError(
                    "rounds must name a round, or be None for all: a threat that never attacks "
                    f"certifies everything, got {self.rounds!r}"
                )

    def in_round(self, index: int) -> "Threat":
        """The same threat in this round alone."""
        return replace(self, rounds=(index,))

    def effect(self, frame: Frame, lanes: Lanes) -> Effect:
        """What a round does to the distance between the two runs."""
        named, unknown = self._rows(frame)
        if not self.attacks(frame.record.index) or not len(named) + len(unknown):
            nobody = np.array([], dtype=np.intp)
            return carried_out(frame, lanes, None, nobody, nobody)
        submitted = self.submitted(frame, lanes, np.concatenate([named, unknown]))
        return carried_out(frame, lanes, submitted, named, unknown)

    @abstractmethod
    def submitted(self, frame: Frame, lanes: Lanes, rows: Rows) -> Submitted:
        """What these participants submit if they attack."""


@dataclass(frozen=True, repr=False, kw_only=True)
class ClientThreat(TimedThreat):
    """Any update whatever is sent, or none, under the server's update clip.

    Args:
        clients: Ids of the attackers.
        at_most: Besides them, any unknown set of up to this many clients.
        rounds: Indices of the attacked rounds; None for all of them.

    Example:
        >>> ClientThreat(clients=[3], at_most=1)  # client 3, and any one other
        ClientThreat(clients=(3,), at_most=1)
    """

    level: ClassVar[str] = "client"
    trusted: ClassVar[tuple[str, ...]] = ("working-clip",)

    def submitted(self, frame: Frame, lanes: Lanes, rows: Rows) -> Submitted:
        """What these participants submit if they attack."""
        if frame.record.update_clip == inf:
            raise ConditionError("update-clip", f"round {frame.record.index}", "update_clip=inf")
        own = frame.honest(lanes.sent_norm(frame))[rows]
        return Submitted(np.full_like(own, inf), own, frame.kappa[rows])


@dataclass(frozen=True, repr=False, kw_only=True)
class ForensicThreat(TimedThreat):
    """What was sent is what the ledger says; compared with the run in which it had been honest.

    Args:
        clients: Ids of the attackers.
        at_most: Besides them, any unknown set of up to this many clients.
        rounds: Indices of the attacked rounds; None for all of them.

    Example:
        >>> ForensicThreat(clients=[3], rounds=[10]).attacks(9)
        False
    """

    level: ClassVar[str] = "forensic"
    trusted: ClassVar[tuple[str, ...]] = ("recorded-settings",)

    def submitted(self, frame: Frame, lanes: Lanes, rows: Rows) -> Submitted:
        """What these participants submit if they attack."""
        # The run that was observed is the attacked one, whose broadcast is known.
        own = frame.honest(np.array([frame.record.broadcast_norm]))[rows]
        error = np.broadcast_to(frame.update[rows, None] + own, (len(rows), lanes.norm.size))
        # The limits of the other run look at its own update, from weights that may be longer.
        other = frame.honest(lanes.sent_norm(frame))[rows]
        return Submitted(error, other, frame.kappa[rows], observed=True)


@dataclass(frozen=True, repr=False, kw_only=True)
class RemovalThreat(Threat):
    """Whatever the clients did; compared with the coupled run in which they had never taken part.

    The coupled run draws the same participants, mini-batches and server noise for everybody else.
    An ordinary retraining draws anew, and differs by its draws besides; with full batches,
    everybody in every round and no noise there is nothing to draw, and the two are the same.

    Args:
        clients: Ids of the clients.
        at_most: Besides them, any unknown set of up to this many clients.

    Example:
        >>> RemovalThreat(at_most=2).rounds is None
        True
    """

    level: ClassVar[str] = "removal"
    trusted: ClassVar[tuple[str, ...]] = ("others-honest", "drawn-before-removal")

    @property
    def left_out(self) -> frozenset[int]:
        """The clients of whose data, code and settings nothing is asked."""
        return frozenset(self.clients)

    def effect(self, frame: Frame, lanes: Lanes) -> Effect:
        """What a round does to the distance between the two runs."""
        return left_out(frame, lanes, np.isin(frame.ids, np.array(self.clients, dtype=np.int64)))


def _refused(arguments: tuple[Any, ...]) -> NoReturn:
    """The error of who writes `Threat` itself, with the class that was meant."""
    level = arguments[0] if arguments else None
    meant = Threat.levels[level].__name__ if level in Threat.levels else "one of its five classes"
    raise TypeError(
        f"Threat is abstract: write bounds.{meant}(clients=..., at_most=...), one of "
        f"{', '.join(one.__name__ for one in Threat.levels.values())}, got {level!r}"
    )


def _default(value: Any) -> Any:
    """A setting's default as it is stored."""
    return (1.0, 1.0) if value == 1.0 and isinstance(value, float) else value


def ids_of(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Different whole numbers, as a tuple."""
    ids = counts(name, value) if len(value) else np.zeros(0, np.int64)
    if ids.ndim != 1 or len(np.unique(ids)) < ids.size:
        raise ValueError(f"{name} must be a list of different whole numbers, got {value!r}")
    return tuple(ids.tolist())
