"""The rounds of a federated run: what the server does before and after the clients' part of
each."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field, fields
from logging import getLogger
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import _draws
from rsfl._checks import Float64, count
from rsfl._fingerprint import described, identity
from rsfl._models import affine_layer
from rsfl.bounds import records
from rsfl.fed.aggregate import Aggregate, Mean
from rsfl.fed.checkpoint import Directory, State
from rsfl.fed.client import SGD, Client, Member, Remote, Task, at_round
from rsfl.fed.layout import Layout
from rsfl.fed.ledger import Entry, Ledger
from rsfl.fed.poison import Attack
from rsfl.fed.training import Failure
from rsfl.train import CrossEntropy

if TYPE_CHECKING:  # it carries rounds out
    from rsfl.fed.server import Server

__all__ = ["Result", "RoundError", "Rounds"]

_LOG = getLogger(__name__)
_REASON = 300  # characters of a reason: what a client says of itself is not to fill the ledger


@dataclass(frozen=True)
class Result:
    """What a run produced.

    Args:
        model: The global model after the last round: clipped if there is a clip, without noise, in
            evaluation mode.
        ledger: What each round did.
        models: The models that mixture clients ended with, by id; empty in other runs.
    """

    model: nn.Module = field(repr=False)
    ledger: Ledger = field(repr=False)
    models: Mapping[int, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> list[Mapping[str, float]]:
        """What ``evaluate`` returned after each round."""
        return [entry.metrics for entry in self.ledger.entries]


class RoundError(RuntimeError):
    """A round in which too few updates were left.

    Attributes:
        result: The run up to the last good round. Nothing is lost: the checkpoint holds it too.
    """

    def __init__(self, message: str, result: Result):
        super().__init__(message)
        self.result = result


@dataclass
class Rounds:
    """The rounds of a run under way: what the server does before and after the clients' part of
    each.

    Whoever carries messages calls ``invite``, lets the clients train, and gives what they sent to
    ``conclude``: `Server.run` does so in this process, `rsfl.fed.flower.Strategy` over a network.

    Args:
        server: The settings.
        total: Number of rounds in all.
        exclude: Clients that never take part.
        attacks: What simulated attackers do, by client id.
        evaluate: Metrics of the model after each round.
        checkpoint: Directory to save each round in, and to go on from.

    Attributes:
        state: What the next round depends on.
        entries: The ledger so far.
    """

    server: "Server"
    total: int
    _: KW_ONLY
    exclude: Collection[int] = ()
    attacks: Mapping[int, Attack] = field(default_factory=dict)
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        self.total = count("rounds", self.total, 1)
        self.exclude = frozenset(self.exclude)
        for name, ids in (("exclude", self.exclude), ("attacks", self.attacks)):
            if unknown := set(ids) - set(self.server.registry):
                raise ValueError(f"{name} must name clients of the server, got {sorted(unknown)!r}")
        for attack in self.attacks.values():
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks must be fed.Attack by client id, got {attack!r}")
        self.layout = Layout.of(self.server.model)
        free = all(parameter.requires_grad for parameter in self.server.model.parameters())
        self._linear = free and affine_layer(self.server.model) is not None
        self._norms: dict[int, float] = {}
        start = self.layout.read(self.server.model)
        self.state, self.entries = State(0, start, start, {}), list[Entry]()
        self._directory = (
            None if self.checkpoint is None else Directory(Path(self.checkpoint), self._identity)
        )
        if self._directory is not None and (found := self._directory.load()) is not None:
            self.state, self.entries = found[0], list(found[1])
        if self.left < 0:
            raise ValueError(
                f"rounds must be at least the {self.state.round} of the checkpoint, got "
                f"{self.total!r}"
            )

    @property
    def left(self) -> int:
        """Rounds that are not done yet."""
        return self.total - self.state.round

    def result(self) -> Result:
        """What there is after the rounds that are done."""
        ledger = Ledger(self.server.registry, tuple(sorted(self.exclude)), tuple(self.entries))
        local = {id_: self._model(vector) for id_, vector in self.state.locals.items()}
        return Result(self._model(self.state.clipped), ledger, local)

    def invite(self) -> tuple[list[Member], list[Tensor], list[Task]]:
        """Who takes part in the next round, the vector that each starts from, and what each is
        told."""
        index, sent = self.state.round + 1, self.state.broadcast
        center, participants = self.layout.split(sent), self._chosen(index)
        tasks, starts = [], []
        for one in participants:
            attack = self.attacks.get(one.id)
            poison = attack.data if attack is not None and attack.active(index) else None
            tasks.append(
                Task(index, one.id, self.server.seed, center if _mixes(one) else {}, poison)
            )
            starts.append(self.state.locals.get(one.id, sent) if _mixes(one) else sent)
        return participants, starts, tasks

    def conclude(self, participants: Sequence[Member], replies: Sequence[Any]) -> Entry:
        """Make the next state of what the participants of `invite` sent, in the same order, and
        save it.

        Args:
            participants: Who was asked.
            replies: From each its exchanged tensors by name, a `Failure`, or anything at all.

        Raises:
            RoundError: Too few updates are usable, or the rule makes no finite model of them.
        """
        self.state, entry = self._next(participants, replies)
        self.entries.append(entry)
        if self._directory is not None:
            self._directory.save(self.state, entry)
        if why := _reasons(participants, [one.reason for one in entry.round.participants]):
            _LOG.warning("round %d went on without some clients: %s", entry.round.index, why)
        return entry

    def _model(self, vector: Tensor) -> nn.Module:
        """A model of its own with these weights."""
        return self.layout.write(deepcopy(self.server.model), vector).eval()

    def _error(self, why: str) -> RoundError:
        """The error of a round that cannot be completed."""
        return RoundError(f"round {self.state.round + 1}: {why}", self.result())

    def _next(self, participants: Sequence[Member], replies: Sequence[Any]) -> tuple[State, Entry]:
        """The state after a round, as a function of the one before it and of what the participants
        sent."""
        server, state = self.server, self.state
        index, sent = state.round + 1, state.broadcast.double()
        weights = np.array([server.registry[one.id] for one in participants], dtype=np.float64)
        weights /= weights.sum()
        rows, verdicts = self._screened(participants, replies, state.broadcast, index)
        usable = [i for i, (outcome, _) in enumerate(verdicts) if outcome in ("used", "clipped")]
        if len(usable) < server.min_clients:
            why = _reasons(participants, [reason for _, reason in verdicts]) or "nobody failed"
            raise self._error(
                f"{len(usable)} usable updates of {server.min_clients} needed ({why})"
            )
        shares = weights
        if server.reject == "zero":
            usable = list(range(len(rows)))
        elif len(usable) < len(rows):
            shares = np.zeros_like(weights)
            shares[usable] = weights[usable] / weights[usable].sum()
        try:
            combined = server.aggregate(rows[usable], torch.from_numpy(shares[usable]))
        except ValueError as error:
            raise self._error(str(error)) from error
        if not isinstance(combined, tuple) or len(combined) != len(Aggregate._fields):
            raise TypeError(f"aggregate must return a fed.Aggregate, got {type(combined).__name__}")
        value, final = combined
        if server.server_step != 1:
            value = sent + server.server_step * (value - sent)
        rho = at_round("clip", server.clip, index) if server.clip is not None else inf
        clipped = self._projected(value, rho).to(self.layout.dtype)
        if not bool(torch.isfinite(clipped).all()):
            raise self._error("the aggregated model is not finite")
        std = server.noise_std if index < self.total else None
        sigma = at_round("noise_std", std, index) if std is not None else 0.0
        noise = self._noise(index, sigma)
        broadcast = clipped.double().clone()  # double() is no copy of what is double already
        broadcast[: self.layout.trained] += noise
        updates = rows.double() - sent if "updates" in server.keep else None
        entry = Entry(
            self._record(
                index, sent, rho, sigma, noise, participants, weights, shares, rows, verdicts
            ),
            {participants[i].id: share for i, share in zip(usable, final, strict=True)}
            if final
            else {},
            self._metrics(clipped),
            updates,
        )
        local = {
            one.id: self.layout.vector(replies[i])
            for i, one in enumerate(participants)
            if _mixes(one) and verdicts[i][0] in ("used", "clipped")
        }
        return State(
            index, clipped, broadcast.to(self.layout.dtype), {**state.locals, **local}
        ), entry

    def _record(
        self,
        index: int,
        sent: Tensor,
        rho: float,
        sigma: float,
        noise: Tensor,
        participants: Sequence[Member],
        weights: Float64,
        shares: Float64,
        rows: Tensor,
        verdicts: Sequence[tuple[str, str]],
    ) -> records.Round:
        """The numbers of a round that certificates read."""
        server = self.server
        mean = Mean()(rows, torch.from_numpy(shares)).value - sent
        members = []
        for i, one in enumerate(participants):
            update = rows[i].double().sub(sent)
            norm, gap = float(update.norm()), float(shares[i] * update.sub_(mean).norm())
            members.append(
                records.Participant(
                    client=one.id,
                    weight=float(weights[i]),
                    **self._client_settings(one, index),
                    update_norm=norm,
                    gap=gap,
                    outcome=verdicts[i][0],
                    reason=verdicts[i][1],
                )
            )
        return records.Round(
            index=index,
            participants=tuple(members),
            broadcast_norm=float(sent[: self.layout.trained].norm()),
            noise_norm=float(noise.norm()),
            noise_std=sigma,
            clip=rho,
            update_clip=server.update_clip or inf,
            server_step=server.server_step,
            weights_from="registration" if server.sizes is None else "server",
            reject=server.reject,
            reject_norm=server.reject_norm,
            aggregator=_rule(server.aggregate),
            model=self._model_name,
            dtype=str(self.layout.dtype).removeprefix("torch."),
            seed=server.seed,
        )

    def _chosen(self, index: int) -> list[Member]:
        """Who takes part, in the order of their ids: sampled among all, then without the
        excluded."""
        server = self.server
        many = max(1, round(server.fraction * len(server.clients)))
        draw = _draws.rng(server.seed, index, "participants").choice(
            len(server.clients), many, replace=False
        )
        chosen = [
            server.clients[i] for i in np.sort(draw) if server.clients[i].id not in self.exclude
        ]
        if not chosen:
            raise self._error("every sampled client is excluded")
        return chosen

    def _screened(
        self, participants: Sequence[Member], replies: Sequence[Any], broadcast: Tensor, index: int
    ) -> tuple[Tensor, list[tuple[str, str]]]:
        """The submitted models (n, d), the broadcast itself where one cannot be used, and (outcome,
        reason) of each."""
        sent = broadcast.double()
        rows = broadcast.repeat(len(replies), 1)
        verdicts = []
        for i, reply in enumerate(replies):
            try:
                problem = reply if isinstance(reply, Failure) else self.layout.problem(reply)
                if not problem:
                    rows[i] = self.layout.vector(reply)
            except Exception as error:  # a mapping or a tensor of its own making
                problem = f"sent what cannot be read: {type(error).__name__}"
            absent = isinstance(reply, Failure) or reply is None
            why = " ".join(str(problem).split())[:_REASON]
            verdicts.append(("absent" if absent else "rejected" if problem else "used", why))
        self._tamper(participants, rows, [v[0] == "used" for v in verdicts], sent, index)
        for i, (outcome, _) in enumerate(verdicts):
            if outcome != "used":
                continue
            update = rows[i].double() - sent
            norm = float(update.norm())
            if not np.isfinite(norm) or norm > self.server.reject_norm:
                finite = bool(torch.isfinite(update).all())
                why = (
                    f"sent an update of norm {norm:g}"
                    if finite
                    else "sent values that are not finite"
                )
                verdicts[i] = ("rejected", why)
                rows[i] = broadcast
            elif self.server.update_clip is not None and norm > self.server.update_clip:
                verdicts[i] = ("clipped", "")
                rows[i] = (sent + update * (self.server.update_clip / norm)).to(rows.dtype)
        return rows, verdicts

    def _tamper(
        self,
        participants: Sequence[Member],
        rows: Tensor,
        sent_one: Sequence[bool],
        sent: Tensor,
        index: int,
    ) -> None:
        """Let simulated attackers change what they send, knowing what the honest ones sent."""
        attacks = {
            i: attack.update
            for i, one in enumerate(participants)
            if (attack := self.attacks.get(one.id)) is not None
            and attack.active(index)
            and attack.update is not None
        }
        if not attacks:
            return
        honest = [
            i for i, one in enumerate(participants) if one.id not in self.attacks and sent_one[i]
        ]
        known = rows[honest].double() - sent
        known = known[torch.isfinite(known).all(dim=1)]
        for i, update in attacks.items():
            if sent_one[i]:
                key = (self.server.seed, index, participants[i].id, "attack")
                sends = update(
                    rows[i].double() - sent, known, _draws.generator(*key, device=rows.device)
                )
                rows[i] = (sent + sends).to(rows.dtype)

    def _projected(self, value: Tensor, rho: float) -> Tensor:
        """The projection of the trained parameters on the ball of radius rho; buffers stay as they
        are."""
        trained = value[: self.layout.trained]
        norm = float(trained.norm())
        return (
            value
            if norm <= rho
            else torch.cat([trained * (rho / norm), value[self.layout.trained :]])
        )

    def _noise(self, index: int, sigma: float) -> Tensor:
        """The server's noise after a round, one value per trained parameter."""
        if not sigma:
            return torch.zeros(1, dtype=torch.float64)
        normal = _draws.rng(self.server.seed, index, "noise").standard_normal(self.layout.trained)
        return torch.from_numpy(sigma * normal).to(next(self.server.model.parameters()).device)

    def _client_settings(self, one: Member, index: int) -> dict[str, Any]:
        """How a client was told to train, for the record; a trainer that is not `SGD` is one opaque
        step."""
        trainer, size = (
            one.trainer,
            one.size if isinstance(one, (Client, Remote)) else self.server.registry[one.id],
        )
        # A subclass of either may do anything.
        ours = type(one) in (Client, Remote) and type(trainer) is SGD
        if not isinstance(trainer, SGD):
            return {
                "lr": 1.0,
                "decay": (0.0, 0.0),
                "input_norm": inf,
                "batch_sizes": (size,),
                "loss": "custom",
                "optimizer": "custom",
                "momentum": 0.0,
            }
        decays, samples = trainer.decays(self.layout), None
        if "samples" in self.server.keep:
            drawn = np.concatenate(trainer.batches(size, Task(index, one.id, self.server.seed)))
            samples = tuple((one.where[drawn] if isinstance(one, Client) else drawn).tolist())
        plain = ours and trainer.mixture is None and trainer.loss == CrossEntropy()
        return {
            "loss": "softmax cross-entropy" if plain else "custom",
            "optimizer": "sgd" if ours else "custom",
            "momentum": float(trainer.momentum) if ours else 0.0,
            "lr": at_round("lr", trainer.lr, index),
            "decay": (min(decays), max(decays)),
            "input_norm": self._input_norm(one),
            "batch_sizes": trainer.batch_sizes(size),
            "samples": samples,
        }

    @property
    def _model_name(self) -> str:
        """``linear`` for the model that certificates know, the class of any other."""
        name = type(self.server.model).__name__
        return "linear" if self._linear else f"custom {name}" if name == "linear" else name

    def _input_norm(self, one: Member) -> float:
        """Bound on ||(x, 1)|| over a client's clean samples, for the models whose certificates read
        it."""
        if not self._linear or not isinstance(one, (Client, Remote)):
            return inf
        if one.id not in self._norms:
            self._norms[one.id] = one.input_norm
        return self._norms[one.id]

    @property
    def _identity(self) -> dict[str, str]:
        """What tells this run from others, part by part; functions count by their names."""
        server, model = self.server, self.server.model
        own = [one for one in server.clients if isinstance(one, Client)]
        data = {
            id(tensor): described(tensor) for one in own for tensor in (one.x, one.y)
        }  # clients may share it
        parts: dict[str, Any] = {
            f.name: getattr(server, f.name) for f in fields(server) if f.name != "clients"
        }
        parts |= {
            "model": (type(model).__name__, [*model.named_parameters(), *model.named_buffers()]),
            "sizes": server.registry,
            "trainers": [one.trainer for one in server.clients],
            "samples": [
                (data[id(one.x)], data[id(one.y)], torch.from_numpy(one.where)) for one in own
            ],
            "exclude": self.exclude,
            "attacks": self.attacks,
            # The last round is the one without noise: a longer run is another run.
            "rounds": self.total if server.noise_std is not None else None,
        }
        return identity(parts)

    def _metrics(self, vector: Tensor) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        return {
            str(name): float(value) for name, value in self.evaluate(self._model(vector)).items()
        }


def _mixes(one: Member) -> bool:
    return isinstance(one.trainer, SGD) and one.trainer.mixture is not None


def _rule(rule: Any) -> str:
    """``mean`` for the rule that certificates know, the class of another of ours, ``custom`` and
    the name of others."""
    if type(rule) is Mean:
        return "mean"
    name = getattr(rule, "__name__", type(rule).__name__)
    return name if type(rule).__module__ == Mean.__module__ else f"custom {name}"


def _reasons(participants: Sequence[Member], reasons: Sequence[str]) -> str:
    """Who failed and why: ``"clients 1, 4, 5 were late; client 7 sent nothing"``."""
    clients: dict[str, list[int]] = {}
    for one, reason in zip(participants, reasons, strict=True):
        if reason:
            clients.setdefault(reason, []).append(one.id)
    return "; ".join(
        f"client{'s' * (len(ids) > 1)} {', '.join(map(str, ids[:5]))}"
        + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        + f" {reason}"
        for reason, ids in clients.items()
    )
