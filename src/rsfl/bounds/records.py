"""What a federated run did, round by round, as frozen numbers: the only thing that a poisoning
certificate reads."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from rsfl._checks import Int64, choice, count, counts, number, numbers

__all__ = ["OUTCOMES", "Participant", "Round", "columns_of", "participants_of"]

OUTCOMES = ("used", "clipped", "rejected", "absent")


def _set(record: Any, **fields: Any) -> None:
    """Store checked values in a record that is frozen from then on."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """One client in one round: how it was told to train, and what became of its update.

    A client whose update was thrown away or never came stays listed: its update counts as zero and
    its weight is kept. The training settings are then the ones it was told to use.

    Args:
        client: Identity of the client, a whole number.
        weight: Its share p_i of the average, in [0, 1]; the shares of a round's participants sum to
            1.
        lr: Step size of its local gradient steps, positive.
        decay: Smallest and largest L2 decay over the parameters, 0 for a parameter that is not
            decayed.
        input_norm: Bound on the l2 norm of (x, 1) over its clean inputs, positive; inf where none
            is known.
        batch_sizes: True size of each mini-batch, one per local step, in order.
        loss: ``"softmax cross-entropy"`` when each local step follows the plain mini-batch gradient
            of it (and of the decay), any other name for anything else.
        optimizer: ``"sgd"``, or the name of any other local optimizer.
        momentum: Momentum of the local optimizer.
        samples: The samples drawn, batch after batch, ``sum(batch_sizes)`` of them, by their
            numbers in the data set that the client was given; None where they were not kept.
        update_norm: l2 norm of the update as it was averaged (after any clip; 0 if none was used).
        gap: weight * || update - mean update of the round ||, what removing this client takes away.
        outcome: ``"used"`` as sent, ``"clipped"`` first, ``"rejected"`` for what it sent, or
            ``"absent"``: it sent nothing (it failed, or was late).
        reason: Why it was rejected or absent, in words.
    """

    client: int
    weight: float
    lr: float
    decay: tuple[float, float]
    input_norm: float
    batch_sizes: tuple[int, ...]
    loss: str
    optimizer: str
    momentum: float
    samples: tuple[int, ...] | None = None
    update_norm: float
    gap: float
    outcome: str = "used"
    reason: str = ""

    def __post_init__(self) -> None:
        decay = numbers("decay", self.decay, 0.0, inf, open_high=True)
        if decay.shape != (2,) or decay[0] > decay[1]:
            raise ValueError(
                f"decay must be the smallest and the largest over the parameters, got "
                f"{self.decay!r}"
            )
        sizes = counts("batch_sizes", self.batch_sizes, 1)
        if sizes.ndim != 1 or not len(sizes):
            raise ValueError(
                f"batch_sizes must list the size of at least one batch, got {self.batch_sizes!r}"
            )
        samples = None if self.samples is None else counts("samples", self.samples)
        if samples is not None and samples.shape != (sizes.sum(),):
            raise ValueError(
                f"samples must list {sizes.sum()} indices, one a draw, got an array of "
                f"{samples.shape}"
            )
        choice("outcome", self.outcome, OUTCOMES)
        for name in ("loss", "optimizer"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a name, got {getattr(self, name)!r}")
        _set(
            self,
            client=count("client", self.client),
            weight=number("weight", self.weight, 0.0, 1.0),
            lr=number("lr", self.lr, 0.0, inf, open_low=True, open_high=True),
            decay=tuple(decay.tolist()),
            input_norm=number("input_norm", self.input_norm, 0.0, open_low=True),
            batch_sizes=tuple(sizes.tolist()),
            momentum=number("momentum", self.momentum, 0.0, inf, open_high=True),
            samples=None if samples is None else tuple(samples.tolist()),
            update_norm=number("update_norm", self.update_norm, 0.0, inf, open_high=True),
            gap=number("gap", self.gap, 0.0, inf, open_high=True),
        )
        if self.outcome in ("rejected", "absent") and self.update_norm:
            raise ValueError(
                f"update_norm must be 0 for a client that was {self.outcome}, got "
                f"{self.update_norm!r}"
            )


Columns = dict[str, Any]
"""Participants as columns: an array a number, a list a text. ``batch_sizes`` and ``samples`` are
laid end to end; ``steps`` and ``sampled`` say whose they are."""

_TEXTS = ("loss", "optimizer", "outcome", "reason")
_ONES = ("client", "weight", "lr", "input_norm", "momentum", "update_norm", "gap")


def columns_of(participants: Sequence[Participant]) -> Columns:
    """The columns of participants, in their order: `participants_of` gives them back."""
    columns: Columns = {
        name: np.array([getattr(one, name) for one in participants]) for name in _ONES
    }
    columns["decay"] = np.array([one.decay for one in participants], float).reshape(-1, 2)
    columns["steps"] = np.array([len(one.batch_sizes) for one in participants])
    columns["batch_sizes"] = np.array([n for one in participants for n in one.batch_sizes])
    columns["sampled"] = np.array([one.samples is not None for one in participants])
    drawn = [np.array(one.samples) for one in participants if one.samples is not None]
    columns["samples"] = np.concatenate([np.zeros(0, int), *drawn])
    return columns | {name: [getattr(one, name) for one in participants] for name in _TEXTS}


def participants_of(columns: Mapping[str, Any]) -> tuple[Participant, ...]:
    """The participants whose columns these are. They are checked like one `Participant` after
    another, all at once, which is some fifty times as fast.

    Raises:
        TypeError, ValueError: A column is missing, too short, or holds a value out of its range.
    """
    if missing := {*_ONES, *_TEXTS, "decay", "steps", "batch_sizes", "sampled"} - set(columns):
        raise ValueError(f"columns must hold {sorted(missing)!r}")
    checked = _checked_numbers(columns)
    many = len(checked["client"])
    for name in _TEXTS:
        checked[name] = list(columns[name])
        if not all(type(text) is str for text in checked[name]):
            raise TypeError(f"{name} must be texts, got {columns[name]!r}")
    for outcome in set(checked["outcome"]):
        choice("outcome", outcome, OUTCOMES)
    if short := [name for name, column in checked.items() if len(column) != many]:
        raise ValueError(f"columns must hold {many} entries each, not so {short!r}")
    unused = np.array([outcome in ("rejected", "absent") for outcome in checked["outcome"]])
    if (checked["update_norm"][unused] != 0).any():
        raise ValueError("update_norm must be 0 for clients that were rejected or absent")
    checked["decay"] = list(map(tuple, checked["decay"].tolist()))
    found = [object.__new__(Participant) for _ in range(many)]
    for name, column in checked.items():
        plain = column.tolist() if isinstance(column, np.ndarray) else column
        deque(map(getattr(Participant, name).__set__, found, plain), maxlen=0)  # runs the map
    return tuple(found)


def _checked_numbers(columns: Mapping[str, Any]) -> Columns:
    """The numbers of the columns, each in the range that `Participant` gives it."""
    positive = {"open_low": True}
    checked: Columns = {
        "client": counts("client", columns["client"]),
        "weight": numbers("weight", columns["weight"], 0.0, 1.0),
        "lr": numbers("lr", columns["lr"], 0.0, inf, open_high=True, **positive),
        "decay": numbers("decay", columns["decay"], 0.0, inf, open_high=True).reshape(-1, 2),
        "input_norm": numbers("input_norm", columns["input_norm"], 0.0, **positive),
    }
    for name in ("momentum", "update_norm", "gap"):
        checked[name] = numbers(name, columns[name], 0.0, inf, open_high=True)
    if (checked["decay"][:, 0] > checked["decay"][:, 1]).any():
        raise ValueError("decay must be the smallest and the largest over the parameters")
    steps = counts("steps", columns["steps"], 1)
    sizes, sampled = counts("batch_sizes", columns["batch_sizes"], 1), columns["sampled"]
    if steps.sum() != sizes.size or len(steps) != len(sampled):
        raise ValueError(f"batch_sizes must hold {steps.sum()} sizes, got {sizes.size}")
    ends = np.cumsum(steps)
    checked["batch_sizes"] = _pieces(sizes, ends)
    drawn = np.add.reduceat(sizes, ends - steps) * np.asarray(sampled, bool)
    samples = counts("samples", columns["samples"])
    if drawn.sum() != samples.size:
        raise ValueError(f"samples must hold {drawn.sum()} numbers, got {samples.size}")
    pieces = _pieces(samples, np.cumsum(drawn))
    checked["samples"] = [
        piece if kept else None for piece, kept in zip(pieces, sampled, strict=True)
    ]
    return checked


def _pieces(values: Int64, ends: Int64) -> list[tuple[int, ...]]:
    """The values up to each end, as tuples. Equal ones are one object."""
    plain, start = values.tolist(), 0
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    pieces = []
    for end in ends.tolist():
        piece = tuple(plain[start:end])
        pieces.append(known.setdefault(piece, piece))
        start = end
    return pieces


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training round as the certificates read it: broadcast, local training, average, clip,
    noise.

    The server sends weights of norm ``broadcast_norm``, averages the participants' updates, moves
    by ``server_step`` times the average, projects on the ball of radius ``clip``, and adds noise of
    norm ``noise_norm``.

    Args:
        index: Number of the round; a log holds consecutive ones.
        participants: The clients that were asked to take part, dropped ones included.
        broadcast_norm: l2 norm of all the weights that were sent.
        noise_norm: l2 norm of the noise added after the clip, 0 if none.
        noise_std: Standard deviation of that noise per parameter.
        clip: Radius rho of the ball on which the model is projected, inf if none.
        clip_fixed: Whether ``clip`` and ``update_clip`` were set before training, not from what
            clients sent.
        update_clip: Largest norm C of an update, inf if updates are not clipped.
        server_step: Fraction of the average update that the server applies.
        weights_from: ``"server"`` (its own registry), ``"registration"`` (what clients said before
            training) or ``"clients"`` (what they report with their updates).
        reject: What a thrown-away update counts as: ``"zero"`` with its weight kept, or
            ``"renormalise"`` the others.
        reject_norm: Norm above which an update is thrown away, inf if none.
        aggregator: ``"mean"`` for the weighted average, any other name for any other rule.
        model: ``"linear"`` for one affine layer without buffers, ``"linear head"`` for a
            trained one behind frozen layers, any other name for anything else.
        dtype: Floating-point type of local training and averaging.
        seed: Seed from which the run draws participants, batches and noise.
        sent_hash: Hash of the weights that were sent, a hex text; ``""`` where it is not known.
        model_hash: Hash of the weights after the clip, before noise: the model of this round.
        passed_hash: Hash of the weights after the noise, which the next round sends.
        features_hash: Hash of the frozen layers below a linear head; ``""`` for other models.
    """

    index: int
    participants: tuple[Participant, ...]
    broadcast_norm: float
    noise_norm: float = 0.0
    noise_std: float = 0.0
    clip: float = inf
    clip_fixed: bool = True
    update_clip: float = inf
    server_step: float = 1.0
    weights_from: str
    reject: str = "zero"
    reject_norm: float = inf
    aggregator: str
    model: str
    dtype: str
    seed: int
    sent_hash: str = ""
    model_hash: str = ""
    passed_hash: str = ""
    features_hash: str = ""

    def __post_init__(self) -> None:
        _set(
            self,
            index=count("index", self.index),
            seed=count("seed", self.seed),
            participants=tuple(self.participants),
        )
        if not self.participants or not all(
            isinstance(one, Participant) for one in self.participants
        ):
            raise TypeError(
                f"participants must be at least one Participant, got {self.participants!r}"
            )
        ids = [one.client for one in self.participants]
        if len(set(ids)) < len(ids):
            raise ValueError(f"participants must be different clients, got {ids!r}")
        for name in ("broadcast_norm", "noise_norm", "noise_std", "server_step"):
            _set(self, **{name: number(name, getattr(self, name), 0.0, inf, open_high=True)})
        for name in ("clip", "update_clip", "reject_norm"):
            _set(self, **{name: number(name, getattr(self, name), 0.0, open_low=True)})
        for name in ("aggregator", "model", "dtype"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a name, got {getattr(self, name)!r}")
        for name in ("sent_hash", "model_hash", "passed_hash", "features_hash"):
            value = getattr(self, name)
            if not isinstance(value, str) or set(value) - set("0123456789abcdef"):
                raise TypeError(f"{name} must be a hex text, got {value!r}")
        choice("weights_from", self.weights_from, ("server", "registration", "clients"))
        choice("reject", self.reject, ("zero", "renormalise"))
        if not isinstance(self.clip_fixed, bool):
            raise TypeError(f"clip_fixed must be True or False, got {self.clip_fixed!r}")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Round":
        """The round whose ``dataclasses.asdict`` is ``record``, possibly through JSON, with
        infinities as texts."""
        fields = _numbers(record, "clip", "update_clip", "reject_norm")
        participants = (
            one if isinstance(one, Participant) else Participant(**_numbers(one, "input_norm"))
            for one in fields.get("participants", ())
        )
        return cls(**{**fields, "participants": tuple(participants)})


def _numbers(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: float(value) if name in names else value for name, value in record.items()}
