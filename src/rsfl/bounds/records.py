"""What a federated run did, round by round, as frozen numbers: the only thing that a poisoning
certificate reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from rsfl._checks import choice, count, counts, number, numbers

__all__ = ["OUTCOMES", "Participant", "Round"]

OUTCOMES = ("used", "clipped", "rejected", "absent")


def _set(record: Any, **fields: Any) -> None:
    """Store checked values in a record that is frozen from then on."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)


@dataclass(frozen=True, kw_only=True)
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
        model: ``"linear"`` for one affine layer without buffers, any other name for anything else.
        dtype: Floating-point type of local training and averaging.
        seed: Seed from which the run draws participants, batches and noise.
        sent_hash: Hash of the weights that were sent, a hex text; ``""`` where it is not known.
        model_hash: Hash of the weights after the clip, before noise: the model of this round.
        passed_hash: Hash of the weights after the noise, which the next round sends.
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
        for name in ("sent_hash", "model_hash", "passed_hash"):
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
            Participant(**_numbers(one, "input_norm")) for one in fields.get("participants", ())
        )
        return cls(**{**fields, "participants": tuple(participants)})


def _numbers(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: float(value) if name in names else value for name, value in record.items()}
