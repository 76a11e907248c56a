"""Who attacks a federated run, when, and with what power: five threats, one class each.

From the weakest attacker to the strongest, then two questions about the past. What sets one level
apart from another is a method of its class.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from typing import Any, ClassVar, Literal, NoReturn, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rsfl._checks import Float64, choice, count, counts, number, numbers, stored
from rsfl.bounds.attack import (
    Effect,
    Lanes,
    Rows,
    Submitted,
    carried_out,
    injected,
    left_out,
    scaled,
)
from rsfl.bounds.condition import ConditionError
from rsfl.bounds.frame import Frame

__all__ = [
    "ClientThreat",
    "FeatureThreat",
    "ForensicThreat",
    "RemovalThreat",
    "SampleThreat",
    "Threat",
]

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

    level: ClassVar[str]
    trusted: ClassVar[tuple[str, ...]]
    """Names of what no ledger can show and the caller answers for at this level."""

    def __new__(cls, *arguments: Any, **settings: Any) -> Self:
        """Refuse the abstract class, which once took the level as an argument."""
        if cls is Threat:
            _refused(arguments)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        stored(self, clients=_ids("clients", self.clients), at_most=count("at_most", self.at_most))
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
        kind = _CLASSES[choice("level", settings.get("level"), tuple(_CLASSES))]
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
class _Timed(Threat):
    """A threat in some of the rounds."""

    rounds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is not None:
            stored(self, rounds=_ids("rounds", self.rounds))
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
class _OfData(_Timed):
    """A threat by poisoned training data; without any of ``samples``, ``per_batch`` and ``share``,
    all samples may be poisoned."""

    samples: int | Mapping[int, Sequence[int]] | None = None
    per_batch: int | None = None
    share: float | None = None
    scale: float | tuple[float, float] = 1.0
    input_norm: float | None = None
    comparator: Literal["clean", "scaled"] = "clean"
    valid: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("comparator", self.comparator, ("clean", "scaled"))
        self._check_how_many()
        if self.input_norm is not None:
            stored(self, input_norm=number("input_norm", self.input_norm, 0, inf, open_high=True))
        if not isinstance(self.valid, bool):
            raise TypeError(f"valid must be True or False, got {self.valid!r}")
        scale = numbers("scale", self.scale, 0.0, inf, open_high=True)
        if scale.shape not in ((), (2,)) or scale.min() != scale.flat[0]:
            raise ValueError(f"scale must be one number or a pair (low, high), got {self.scale!r}")
        stored(self, scale=(float(scale.min()), float(scale.max())))
        if self.comparator == "scaled" and self.at_most:
            raise ValueError(
                f"clients must be named for comparator='scaled', got at_most={self.at_most!r}"
            )

    def _check_how_many(self) -> None:
        """Three ways to say how much is poisoned, of which at most one is given."""
        if sum(one is not None for one in (self.samples, self.per_batch, self.share)) > 1:
            raise ValueError(
                "samples, per_batch and share are three ways to say one thing: give at most one"
            )
        if isinstance(self.samples, Mapping):
            named = {
                count("samples", client): _ids("samples", which)
                for client, which in self.samples.items()
            }
            stored(self, samples=named)
            if set(named) != set(self.clients) or self.at_most:
                raise ValueError(
                    f"samples must name the clients {self.clients!r} and nobody can be unknown, "
                    f"got {sorted(named)!r}, at_most={self.at_most!r}"
                )
        for name in ("samples", "per_batch"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                stored(self, **{name: count(name, value, 1)})
        if self.share is not None:
            stored(self, share=number("share", self.share, 0.0, 1.0, open_low=True))

    @property
    def trusted(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of what no ledger can show and the caller answers for."""
        return ("threat-respected", *(("valid-samples",) * self.valid))

    @property
    def scales(self) -> tuple[float, float]:
        """The smallest and the largest factor on the attackers' updates."""
        return cast(tuple[float, float], self.scale)  # one number has become a pair

    @abstractmethod
    def injected(
        self,
        frame: Frame,
        lanes: Lanes,
        rows: Rows,
        shares: "list[tuple[Float64, int]] | Float64",
    ) -> tuple[Float64, Bools]:
        """Eq. (6) with what this level may do to one sample."""

    def submitted(self, frame: Frame, lanes: Lanes, rows: Rows) -> Submitted:
        """What these participants submit if they attack."""
        moved, fails = self.injected(frame, lanes, rows, self._shares(frame, rows))
        known, kappa = frame.ruly[rows, None], frame.kappa[rows]
        honest = np.where(known, frame.honest(lanes.sent_norm(frame))[rows], 0.0)
        low, high = self.scales
        longest = scaled(high, honest + moved)
        if self.comparator == "scaled":
            own, error, stretch = scaled(high, honest), scaled(high, moved), high
            kappa = np.maximum(abs(low - 1) + low * kappa, abs(high - 1) + high * kappa)
        else:
            # Convex in the scale: the worst lies at an end.
            own, stretch = honest, 1.0
            ends = (scaled(by, moved) + scaled(abs(by - 1), honest) for by in (low, high))
            error = np.maximum(*ends)
        # An update that is rejected, or a training that fails, ends up as zero.
        lost = fails | (longest > frame.record.reject_norm) | (not self.valid)
        error = np.where(lost, np.maximum(error, own), error)
        return Submitted(np.where(known, error, inf), np.where(known, own, inf), kappa, stretch)

    def _shares(self, frame: Frame, rows: Rows) -> "list[tuple[Float64, int]] | Float64":
        """Poisoned share of each batch, as `injected` takes it."""
        sizes = frame.sizes[rows]
        if self.share is not None:
            return np.full(sizes.shape, self.share)
        if self.per_batch is not None:
            return np.asarray(np.minimum(self.per_batch, sizes) / sizes)
        if self.samples is None:
            return np.ones(sizes.shape)
        found = []
        for row in rows:
            drawn, client = frame.drawn[row], int(frame.ids[row])
            if drawn is None:
                where = f"round {frame.record.index}, client {client}"
                raise ConditionError("recorded-samples", where, "samples=None")
            names, shares = drawn
            if isinstance(self.samples, Mapping):
                chosen = shares[np.isin(names, self.samples[client])]
                found.append((chosen.sum(axis=0, keepdims=True), 1))
            else:
                found.append((shares, self.samples))
        return found


@dataclass(frozen=True, repr=False, kw_only=True)
class FeatureThreat(_OfData):
    """Training inputs are moved by at most ``norm`` each, and labels may be flipped.

    Args:
        clients: Ids of the attackers.
        at_most: Besides them, any unknown set of up to this many clients.
        rounds: Indices of the attacked rounds; None for all of them.
        norm: Largest l2 norm of the change of one input.
        flips: Whether labels may change as well.
        samples: Which of its samples each attacker poisons, {client: numbers}, or how many of them
            at most; all by default. The numbers are those in the data set that the client was
            given, as the ledger has them.
        per_batch: Most poisoned draws in any mini-batch, instead.
        share: Largest poisoned share of any mini-batch, the short ones included, instead.
        scale: Factor on the attackers' updates; a pair (low, high) if it lies in between.
        input_norm: Bound on || (x, 1) || of poisoned inputs; the ledger's bound plus ``norm`` holds
            anyway.
        comparator: ``"clean"``: the attackers are honest. ``"scaled"``: they train on clean data
            but scale their updates all the same, as the published CRFL certificate has it.
        valid: Whether poisoned samples are such that a client can train on them. If not, one of
            them can turn the client's whole update to zero, and that is paid for.

    Example:
        >>> FeatureThreat(clients=[3], rounds=[10], norm=0.1, per_batch=5, scale=10.0).clients
        (3,)
    """

    norm: float
    flips: bool = True

    level: ClassVar[str] = "feature"

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, norm=number("norm", self.norm, 0.0, inf, open_high=True))
        if not isinstance(self.flips, bool):
            raise TypeError(f"flips must be True or False, got {self.flips!r}")
        if not (self.norm or self.flips or self.scales != (1.0, 1.0)) and self.valid:
            raise ValueError(
                "norm must be above 0 where neither flips nor scale change anything: such a threat "
                f"certifies everything, got {self.norm!r}"
            )

    def injected(
        self, frame: Frame, lanes: Lanes, rows: Rows, shares: "list[tuple[Float64, int]] | Float64"
    ) -> tuple[Float64, Bools]:
        """Eq. (6) with moved inputs."""
        how = {"moves": True, "flips": self.flips, "input_norm": self.input_norm}
        return injected(frame, rows, lanes, **how, shares=shares)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False, kw_only=True)
class SampleThreat(_OfData):
    """Training samples are replaced by any others with || (x, 1) || <= ``input_norm``.

    Args:
        clients, at_most, rounds, samples, per_batch, share, scale, comparator, valid: As for
            :class:`FeatureThreat`.
        input_norm: Bound on || (x, 1) || of poisoned inputs.

    Example:
        >>> SampleThreat(at_most=1, input_norm=1.5)
        SampleThreat(at_most=1, input_norm=1.5)
    """

    input_norm: float = field()  # required here, unlike where it is declared first

    level: ClassVar[str] = "sample"

    def injected(
        self, frame: Frame, lanes: Lanes, rows: Rows, shares: "list[tuple[Float64, int]] | Float64"
    ) -> tuple[Float64, Bools]:
        """Eq. (6) with any content."""
        how = {"moves": False, "flips": True, "input_norm": self.input_norm}
        return injected(frame, rows, lanes, **how, shares=shares)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False, kw_only=True)
class ClientThreat(_Timed):
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
class ForensicThreat(_Timed):
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
        own = np.broadcast_to(own, (len(rows), lanes.norm.size))
        return Submitted(frame.update[rows, None] + own, own, frame.kappa[rows], observed=True)


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


_CLASSES: dict[str, type[Threat]] = {
    one.level: one
    for one in (FeatureThreat, SampleThreat, ClientThreat, ForensicThreat, RemovalThreat)
}


def _refused(arguments: tuple[Any, ...]) -> NoReturn:
    """The error of who writes `Threat` itself, with the class that was meant."""
    level = arguments[0] if arguments else None
    meant = _CLASSES[level].__name__ if level in _CLASSES else "one of its five classes"
    raise TypeError(
        f"Threat is abstract: write bounds.{meant}(clients=..., at_most=...), one of "
        f"{', '.join(one.__name__ for one in _CLASSES.values())}, got {level!r}"
    )


def _default(value: Any) -> Any:
    """A setting's default as it is stored."""
    return (1.0, 1.0) if value == 1.0 and isinstance(value, float) else value


def _ids(name: str, value: Sequence[int]) -> tuple[int, ...]:
    ids = counts(name, value) if len(value) else np.zeros(0, np.int64)
    if ids.ndim != 1 or len(np.unique(ids)) < ids.size:
        raise ValueError(f"{name} must be a list of different whole numbers, got {value!r}")
    return tuple(ids.tolist())
