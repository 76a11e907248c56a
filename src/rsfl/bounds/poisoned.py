"""Threats by poisoned training data: moved inputs, or samples of any content."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from rsfl._checks import Float64, choice, count, number, numbers, stored
from rsfl.bounds.attack import Lanes, Rows, Submitted, injected, scaled
from rsfl.bounds.condition import ConditionError
from rsfl.bounds.frame import Frame
from rsfl.bounds.threat import TimedThreat, ids_of

__all__ = ["FeatureThreat", "SampleThreat"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, repr=False, kw_only=True)
class _OfData(TimedThreat):
    """A threat by poisoned training data; without any of ``samples``, ``per_batch`` and ``share``,
    all samples may be poisoned."""

    samples: int | Mapping[int, Sequence[int]] | None = None
    per_batch: int | None = None
    share: float | None = None
    scale: float | tuple[float, float] = 1.0
    input_norm: float | None = None
    comparator: Literal["clean", "scaled"] = "clean"
    valid: bool = True
    space: Literal["inputs", "features"] = "inputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("comparator", self.comparator, ("clean", "scaled"))
        choice("space", self.space, ("inputs", "features"))
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
                count("samples", client): ids_of("samples", which)
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
    def of_inputs(self) -> bool:
        """Whether its numbers are norms of inputs, not of what frozen layers make of them."""
        return self.space == "inputs"

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
        valid: Whether poisoned samples are such that a client can train on them: also when moved,
            none may leave the server's ``max_input_norm``. If not, one of them can turn the
            client's whole update to zero, and that is paid for.
        space: What ``norm`` and ``input_norm`` are norms of. ``"features"``: of what the frozen
            layers below a linear head make of an input. A pixel trigger of norm 0.1 moves features
            by as much as the layers' Lipschitz constant allows, so that a run with frozen layers is
            certified for moved features alone.

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
        clients, at_most, rounds, samples, per_batch, share, scale, comparator, valid, space: As for
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
