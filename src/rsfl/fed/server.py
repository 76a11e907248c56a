"""The server: a frozen description of a federated run, and the loop that carries it out."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field, fields, is_dataclass
from functools import cached_property
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rsfl import _heap
from rsfl._checks import Float64, choice, count, number
from rsfl.bounds import records
from rsfl.fed import draws
from rsfl.fed.aggregate import Mean, Rule
from rsfl.fed.checkpoint import Directory, State
from rsfl.fed.client import SGD, Client, Participant, Remote, Schedule, Task, at_round
from rsfl.fed.layout import Layout
from rsfl.fed.ledger import Entry, Ledger
from rsfl.fed.poison import Attack
from rsfl.fed.training import Failure, train
from rsfl.smooth.affine import affine_layer
from rsfl.train import CrossEntropy

__all__ = ["Result", "RoundError", "Run", "Server"]

_KEEP = ("samples", "updates")
_WORDS = 300  # characters of a reason: what a client says of itself is not to fill the ledger


@dataclass(frozen=True)
class Result:
    """What a run produced.

    Args:
        model: The global model after the last round: clipped if there is a clip, without noise, in evaluation mode.
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


@dataclass(frozen=True)
class Server:
    """A federated run: who takes part, how updates are combined, and what is done to the model in between.

    One round is: broadcast, local training, screening, clip of the updates, aggregation, clip of the model, record,
    noise. Every draw is keyed by (seed, round, client, purpose): runs that differ in one client or one attack share all
    the other draws. Nothing is mutated, neither the model nor the clients: ``run`` twice, and get the same twice.

    Args:
        model: Architecture and initial weights.
        clients: Who may take part: `Client`, or anything with ``id``, ``size``, ``trainer`` and ``fit``.
        aggregate: `Mean`, `GeometricMedian`, `CoordinateMedian`, `TrimmedMean`, `Krum`, or any `Rule`.
        fraction: Share of the clients that takes part in a round, in (0, 1]; at least one does.
        server_step: The new model is the broadcast plus this times the aggregated update.
        clip: Radius rho_t of the ball on which the trained parameters are projected, or a function of the round.
        noise: Standard deviation sigma_t of the Gaussian noise that is then added to them, except in the last round.
        update_clip: Largest l2 norm C of an update; longer ones are shortened.
        reject_norm: l2 norm above which an update is absurd and thrown away.
        reject: A thrown-away or absent update counts as ``"zero"`` with its weight kept, or the other weights are
            ``"renormalise"``-d.
        min_clients: Fewest usable updates that make a round.
        sizes: The registry: samples of each client by id, from which the weights come; what a client says of itself at
            registration if None, and nothing that it says later.
        timeout: Seconds that a client may take in a round. Each then trains in a thread, which cannot be killed: a late
            one goes on in the background, on a copy of its own, and is not listened to. What it draws from the global
            random state it shares with the others: dropout, say, does not repeat after a late client.
        stacked: Whether clients are trained together where they can be.
        keep: What else the ledger keeps: ``"samples"`` (indices of every mini-batch), ``"updates"``.
        seed: Seed of every draw.

    Raises:
        TypeError, ValueError: A setting out of its range, or clients that are not told apart by their ids.

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017.
        Xie, Chen, Chen and Li, CRFL: certifiably robust federated learning against backdoor attacks, ICML 2021, Alg. 1.
    """

    model: nn.Module = field(repr=False)
    clients: Sequence[Participant] = field(repr=False)
    _: KW_ONLY
    aggregate: Rule = field(default_factory=Mean)
    fraction: float = 1.0
    server_step: float = 1.0
    clip: Schedule | None = None
    noise: Schedule | None = None
    update_clip: float | None = None
    reject_norm: float = 1e6
    reject: str = "zero"
    min_clients: int = 1
    sizes: Mapping[int, int] | None = None
    timeout: float | None = None
    stacked: bool = True
    keep: Collection[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        Layout.of(self.model)
        number("fraction", self.fraction, 0.0, 1.0, open_low=True)
        number("server_step", self.server_step, 0.0, inf, open_low=True, open_high=True)
        number("reject_norm", self.reject_norm, 0.0, open_low=True)
        choice("reject", self.reject, ("zero", "renormalise"))
        for name in ("clip", "noise", "update_clip", "timeout"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                at_round(name, getattr(self, name), 1)
        for what in self.keep:
            choice("keep", what, _KEEP)
        count("min_clients", self.min_clients, 1)
        count("seed", self.seed)
        ids = [count("clients", one.id) for one in self.clients]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(f"clients must be at least one, with different ids, got the ids {ids!r}")
        object.__setattr__(self, "clients", tuple(sorted(self.clients, key=lambda one: one.id)))
        sizes = {one.id: one.size for one in self.clients} if self.sizes is None else dict(self.sizes)
        if set(sizes) != set(ids):
            raise ValueError(f"sizes must name the clients {sorted(ids)!r}, got {sorted(sizes)!r}")
        object.__setattr__(self, "sizes", {id_: count("sizes", sizes[id_], 1) for id_ in sorted(sizes)})

    def run(
        self,
        rounds: int,
        *,
        exclude: Collection[int] = (),
        attacks: Mapping[int, Attack] | None = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Result:
        """Carry the run out, or take it up where a checkpoint left it.

        Args:
            rounds: Number of rounds in all.
            exclude: Clients that never take part. Participants are drawn before they are left out, so that the run is
                coupled with the one that has them: nobody else's draws change.
            attacks: What simulated attackers do, by client id.
            evaluate: Metrics of the model after each round, by name; shown on the progress bar and kept in the ledger.
            checkpoint: Directory in which each round is saved, and from which an interrupted run goes on, bit for bit.
            progress: Whether to show a progress bar.

        Raises:
            RoundError: Too few usable updates; it carries the run so far.
            CheckpointError: The directory belongs to another run, or nothing in it can be believed.
        """
        run = Run(self, rounds, exclude=exclude, attacks=attacks or {}, evaluate=evaluate, checkpoint=checkpoint)
        bar = tqdm(total=run.rounds, initial=run.state.round, disable=not progress, desc="federated")
        with _heap.kept(), bar:
            while run.left:
                participants, starts, tasks = run.invite()
                replies = train(self.model, participants, starts, tasks, stacked=self.stacked, timeout=self.timeout)
                bar.set_postfix(run.conclude(participants, replies).metrics)
                bar.update()
        return run.result()


@dataclass
class Run:
    """A run under way: what the server does before and after the clients' part of each round.

    Whoever carries messages calls ``invite``, lets the clients train, and gives what they sent to ``conclude``:
    `Server.run` does so in this process, `rsfl.fed.flower.Strategy` over a network.

    Args:
        server: The settings.
        rounds: Number of rounds in all.
        exclude: Clients that never take part.
        attacks: What simulated attackers do, by client id.
        evaluate: Metrics of the model after each round.
        checkpoint: Directory to save each round in, and to go on from.

    Attributes:
        state: What the next round depends on.
        entries: The ledger so far.
    """

    server: Server
    rounds: int
    _: KW_ONLY
    exclude: Collection[int] = ()
    attacks: Mapping[int, Attack] = field(default_factory=dict)
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        self.rounds = count("rounds", self.rounds, 1)
        self.registry = dict(self.server.sizes or {})
        for name, ids in (("exclude", self.exclude), ("attacks", self.attacks)):
            if unknown := set(ids) - set(self.registry):
                raise ValueError(f"{name} must name clients of the server, got {sorted(unknown)!r}")
        self.layout = Layout.of(self.server.model)
        free = all(parameter.requires_grad for parameter in self.server.model.parameters())
        self.linear = free and affine_layer(self.server.model) is not None
        self.norms: dict[int, float] = {}
        start = self.layout.read(self.server.model)
        self.state, self.entries = State(0, start, start, {}), list[Entry]()
        self.directory = None if self.checkpoint is None else Directory(Path(self.checkpoint), self.fingerprint)
        if self.directory is not None and (found := self.directory.load()) is not None:
            self.state, self.entries = found[0], list(found[1])
        if self.left < 0:
            raise ValueError(f"rounds must be at least the {self.state.round} of the checkpoint, got {self.rounds!r}")

    @property
    def left(self) -> int:
        """Rounds that are not done yet."""
        return self.rounds - self.state.round

    def result(self) -> Result:
        """What there is after the rounds that are done."""
        ledger = Ledger(self.registry, tuple(sorted(self.exclude)), tuple(self.entries))
        local = {id_: self.module(vector) for id_, vector in self.state.locals.items()}
        return Result(self.module(self.state.clipped), ledger, local)

    def module(self, vector: Tensor) -> nn.Module:
        """A model of its own with these weights."""
        return self.layout.write(deepcopy(self.server.model), vector).eval()

    def stopped(self, why: str) -> RoundError:
        """The error of a round that cannot be completed."""
        return RoundError(f"round {self.state.round + 1}: {why}", self.result())

    def invite(self) -> tuple[list[Participant], list[Tensor], list[Task]]:
        """Who takes part in the next round, the vector that each starts from, and what each is told."""
        index, sent = self.state.round + 1, self.state.broadcast
        center, participants = self.layout.split(sent), self.participants(index)
        tasks, starts = [], []
        for one in participants:
            attack = self.attacks.get(one.id)
            poison = attack.data if attack is not None and attack.active(index) else None
            tasks.append(Task(index, one.id, self.server.seed, center if _mixes(one) else {}, poison))
            starts.append(self.state.locals.get(one.id, sent) if _mixes(one) else sent)
        return participants, starts, tasks

    def conclude(self, participants: Sequence[Participant], replies: Sequence[Any]) -> Entry:
        """Make the next state of what the participants of `invite` sent, in the same order, and save it.

        Args:
            participants: Who was asked.
            replies: From each its exchanged tensors by name, a `Failure`, or anything at all.

        Raises:
            RoundError: Too few updates are usable, or the rule makes no finite model of them.
        """
        self.state, entry = self.round(participants, replies)
        self.entries.append(entry)
        if self.directory is not None:
            self.directory.save(self.state, entry)
        return entry

    def round(self, participants: Sequence[Participant], replies: Sequence[Any]) -> tuple[State, Entry]:
        """The state after a round, as a function of the one before it and of what the participants sent."""
        server, state = self.server, self.state
        index, sent = state.round + 1, state.broadcast.double()
        weights = np.array([self.registry[one.id] for one in participants], dtype=np.float64)
        weights /= weights.sum()
        rows, verdicts = self.screen(participants, replies, state.broadcast, index)
        usable = [i for i, (outcome, _) in enumerate(verdicts) if outcome in ("used", "clipped")]
        if len(usable) < server.min_clients:
            why = "; ".join(f"client {one.id} {v[1]}" for one, v in zip(participants, verdicts, strict=True) if v[1])
            raise self.stopped(f"{len(usable)} usable updates of {server.min_clients} needed ({why})")
        shares = weights
        if server.reject == "zero":
            usable = list(range(len(rows)))
        elif len(usable) < len(rows):
            shares = np.zeros_like(weights)
            shares[usable] = weights[usable] / weights[usable].sum()
        try:
            value, final = server.aggregate(rows[usable], torch.from_numpy(shares[usable]))
        except ValueError as error:
            raise self.stopped(str(error)) from error
        if server.server_step != 1:
            value = sent + server.server_step * (value - sent)
        rho = at_round("clip", server.clip, index) if server.clip is not None else inf
        clipped = self.clip(value, rho).to(self.layout.dtype)
        if not bool(torch.isfinite(clipped).all()):
            raise self.stopped("the aggregated model is not finite")
        sigma = at_round("noise", server.noise, index) if server.noise is not None and index < self.rounds else 0.0
        noise = self.noise(index, sigma)
        broadcast = clipped.double().clone()  # double() is no copy of what is double already
        broadcast[: self.layout.trained] += noise
        updates = rows.double() - sent if "updates" in server.keep else None
        entry = Entry(
            self.record(index, sent, rho, sigma, noise, participants, weights, shares, rows, verdicts),
            {participants[i].id: share for i, share in zip(usable, final, strict=True)} if final else {},
            dict(self.evaluate(self.module(clipped))) if self.evaluate is not None else {},
            updates,
        )
        local = {
            one.id: self.layout.vector(replies[i])
            for i, one in enumerate(participants)
            if _mixes(one) and verdicts[i][0] in ("used", "clipped")
        }
        return State(index, clipped, broadcast.to(self.layout.dtype), {**state.locals, **local}), entry

    def record(
        self,
        index: int,
        sent: Tensor,
        rho: float,
        sigma: float,
        noise: Tensor,
        participants: Sequence[Participant],
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
                    **self.told(one, index),
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
            weights_from="server",
            reject=server.reject,
            reject_norm=server.reject_norm,
            aggregator=_name(server.aggregate),
            **self.training(participants),
            dtype=str(self.layout.dtype).removeprefix("torch."),
            seed=server.seed,
        )

    def participants(self, index: int) -> list[Participant]:
        """Who takes part, in the order of their ids: sampled among all, then without the excluded."""
        server = self.server
        many = max(1, round(server.fraction * len(server.clients)))
        draw = draws.rng(server.seed, index, "participants").choice(len(server.clients), many, replace=False)
        chosen = [server.clients[i] for i in np.sort(draw) if server.clients[i].id not in self.exclude]
        if not chosen:
            raise self.stopped("every sampled client is excluded")
        return chosen

    def screen(
        self, participants: Sequence[Participant], replies: Sequence[Any], broadcast: Tensor, index: int
    ) -> tuple[Tensor, list[tuple[str, str]]]:
        """The submitted models (n, d), the broadcast itself where one cannot be used, and (outcome, reason) of each."""
        sent = broadcast.double()
        rows = broadcast.repeat(len(replies), 1)
        verdicts = []
        for i, reply in enumerate(replies):
            problem = reply if isinstance(reply, Failure) else self.layout.problem(reply)
            if not problem:
                rows[i] = self.layout.vector(reply)
            absent = isinstance(reply, Failure) or reply is None
            why = " ".join(str(problem).split())[:_WORDS]
            verdicts.append(("absent" if absent else "rejected" if problem else "used", why))
        self.tamper(participants, rows, [v[0] == "used" for v in verdicts], sent, index)
        for i, (outcome, _) in enumerate(verdicts):
            if outcome != "used":
                continue
            update = rows[i].double() - sent
            norm = float(update.norm())
            if not np.isfinite(norm) or norm > self.server.reject_norm:
                finite = bool(torch.isfinite(update).all())
                why = f"sent an update of norm {norm:g}" if finite else "sent values that are not finite"
                verdicts[i] = ("rejected", why)
                rows[i] = broadcast
            elif self.server.update_clip is not None and norm > self.server.update_clip:
                verdicts[i] = ("clipped", "")
                rows[i] = (sent + update * (self.server.update_clip / norm)).to(rows.dtype)
        return rows, verdicts

    def tamper(
        self, participants: Sequence[Participant], rows: Tensor, sent_one: Sequence[bool], sent: Tensor, index: int
    ) -> None:
        """Let simulated attackers change what they send, knowing what the honest ones sent."""
        attacks = {
            i: attack.update
            for i, one in enumerate(participants)
            if (attack := self.attacks.get(one.id)) is not None and attack.active(index) and attack.update is not None
        }
        if not attacks:
            return
        honest = [i for i, one in enumerate(participants) if one.id not in self.attacks and sent_one[i]]
        known = rows[honest].double() - sent
        known = known[torch.isfinite(known).all(dim=1)]
        for i, update in attacks.items():
            if sent_one[i]:
                key = (self.server.seed, index, participants[i].id, "attack")
                sends = update(rows[i].double() - sent, known, draws.generator(*key, device=rows.device))
                rows[i] = (sent + sends).to(rows.dtype)

    def clip(self, value: Tensor, rho: float) -> Tensor:
        """The projection of the trained parameters on the ball of radius rho; buffers stay as they are."""
        trained = value[: self.layout.trained]
        norm = float(trained.norm())
        return value if norm <= rho else torch.cat([trained * (rho / norm), value[self.layout.trained :]])

    def noise(self, index: int, sigma: float) -> Tensor:
        """The server's noise after a round, one value per trained parameter."""
        if not sigma:
            return torch.zeros(1, dtype=torch.float64)
        normal = draws.rng(self.server.seed, index, "noise").standard_normal(self.layout.trained)
        return torch.from_numpy(sigma * normal).to(next(self.server.model.parameters()).device)

    def told(self, one: Participant, index: int) -> dict[str, Any]:
        """How a client was told to train, for the record; a trainer that is not `SGD` is one opaque step."""
        trainer, size = one.trainer, one.size if isinstance(one, (Client, Remote)) else self.registry[one.id]
        if not isinstance(trainer, SGD):
            return {"learning_rate": 1.0, "decay": (0.0, 0.0), "input_norm": inf, "batch_sizes": (size,)}
        decays, samples = trainer.decays(self.layout), None
        if "samples" in self.server.keep:
            samples = tuple(np.concatenate(trainer.batches(size, Task(index, one.id, self.server.seed))).tolist())
        return {
            "learning_rate": at_round("lr", trainer.lr, index),
            "decay": (min(decays), max(decays)),
            "input_norm": self.input_norm(one),
            "batch_sizes": trainer.batch_sizes(size),
            "samples": samples,
        }

    def training(self, participants: Sequence[Participant]) -> dict[str, Any]:
        """What was trained and by which rule, in the words of the record; ``"custom"`` unless all agree."""
        trainers = [one.trainer for one in participants]
        sgd = [trainer for trainer in trainers if type(trainer) is SGD]  # a subclass may do anything
        ours = len(sgd) == len(trainers)
        plain = ours and all(t.mixture is None and t.loss == CrossEntropy() for t in sgd)
        return {
            "model": "linear" if self.linear else type(self.server.model).__name__,
            "loss": "softmax cross-entropy" if plain else "custom",
            "optimiser": "sgd" if ours else "custom",
            "momentum": max((float(t.momentum) for t in sgd), default=0.0),
        }

    def input_norm(self, one: Participant) -> float:
        """Bound on ||(x, 1)|| over a client's clean samples, for the models whose certificates read it."""
        if not self.linear or not isinstance(one, (Client, Remote)):
            return inf
        if one.id not in self.norms:
            self.norms[one.id] = one.input_norm
        return self.norms[one.id]

    @cached_property
    def fingerprint(self) -> str:
        """What tells this run from others, hashed: settings, trainers, who holds which samples, initial weights.

        Functions count by their names, and data sets by the samples' numbers: neither is looked into.
        """
        settings = {f.name: _words(getattr(self.server, f.name)) for f in fields(self.server) if f.name != "clients"}
        parts: list[Any] = [
            settings,
            [(one.id, _words(one.trainer)) for one in self.server.clients],
            [_words(torch.from_numpy(one.where)) for one in self.server.clients if isinstance(one, Client)],
            _words(self.layout.read(self.server.model)),
            list(self.layout.shapes.items()),
            sorted(self.exclude),
            [(id_, _words(attack)) for id_, attack in sorted(self.attacks.items())],
            # The last round is the one without noise: a longer run is another run.
            self.rounds if self.server.noise is not None else None,
        ]
        return sha256(repr(parts).encode()).hexdigest()


def _mixes(one: Participant) -> bool:
    return isinstance(one.trainer, SGD) and one.trainer.mixture is not None


def _name(rule: Any) -> str:
    """``mean`` for the rule that certificates know, the class or function name of any other."""
    return "mean" if type(rule) is Mean else getattr(rule, "__name__", type(rule).__name__)


def _words(value: Any) -> str:
    """A setting in words that are the same in every process: names and numbers, no addresses."""
    if isinstance(value, Tensor):
        return sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        return (
            f"{type(value).__name__}({', '.join(f'{f.name}={_words(getattr(value, f.name))}' for f in fields(value))})"
        )
    if isinstance(value, Mapping):
        return repr({key: _words(one) for key, one in value.items()})
    if isinstance(value, (list, tuple, set, frozenset)):
        return repr(sorted(map(_words, value)))
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else repr(value)
