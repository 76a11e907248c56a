"""The rounds of a federated run: what the server does around the clients' part of each."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import _draws, bounds
from rsfl._checks import count
from rsfl.fed.averaging import averaged, measured, projected, shares_of, usable
from rsfl.fed.checkpoint import CheckpointError, Directory, State
from rsfl.fed.client import Member
from rsfl.fed.layout import Layout
from rsfl.fed.ledger import Entry, Ledger
from rsfl.fed.ours import named_rule, plain_tensor
from rsfl.fed.plan import Plan
from rsfl.fed.poison import Attack
from rsfl.fed.recording import Names, Outcome, recorded
from rsfl.fed.result import Result, RoundError, reasons_of
from rsfl.fed.rows import Rows
from rsfl.fed.screening import Limits, Verdict, admit, screen, tamper
from rsfl.fed.settings import Settings, run_identity
from rsfl.fed.survey import Survey, survey
from rsfl.fed.trainer import Task, mixes

__all__ = ["Rounds"]

_LOG = getLogger(__name__)


@dataclass(frozen=True)
class _Invitation:
    """What one round began with."""

    participants: Sequence[Member]
    tasks: Sequence[Task]
    names: Names
    surveys: Mapping[int, Survey]


@dataclass
class Rounds:
    """The rounds of a run: what the server does before and after the clients' part of each.

    Whoever carries messages calls ``invite``, lets the clients train, and gives what they sent to
    ``conclude``: `Server.run` does so in this process, `rsfl.fed.flower.Strategy` over a network.

    Args:
        settings: Those of the server.
        total: Number of rounds in all.
        exclude: Clients that never take part.
        attacks: What simulated attackers do, by client id.
        evaluate: Metrics of the model after each round.
        checkpoint: Directory to save each round in, and to go on from.

    Attributes:
        state: What the next round depends on.
        entries: The ledger so far.
        plan: What the schedules said before the first round.
        apart: Clients of the round under way that cannot train on all of their samples.
    """

    settings: Settings
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
            if unknown := set(ids) - set(self.settings.registry):
                raise ValueError(f"{name} must name clients of the server, got {sorted(unknown)!r}")
        for attack in self.attacks.values():
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks must be fed.Attack by client id, got {attack!r}")
        self.plan: Plan = self.settings.plan(self.total)
        self.layout = Layout.of(self.settings.model)
        self.unusable = self._registered()
        self.apart: frozenset[int] = frozenset()
        self._invitation: _Invitation | None = None
        start = self.layout.read(self.settings.model)
        planned = self.plan.of_server()
        self.state, self.entries = State(0, start, start, {}, planned, self.total), list[Entry]()
        self._directory = (
            None if self.checkpoint is None else Directory(Path(self.checkpoint), self._identity())
        )
        if self._directory is not None and (found := self._directory.load()) is not None:
            self._resume(*found)

    def _resume(self, state: State, entries: Sequence[Entry]) -> None:
        """Go on from a checkpoint, whose rounds must have been planned as they are now."""
        if state.round > self.total:
            raise ValueError(
                f"rounds must be at least the {state.round} of the checkpoint, got {self.total!r}"
            )
        vectors = [state.clipped, state.broadcast, *state.locals.values()]
        if not all(plain_tensor(one) and one.shape == self.state.clipped.shape for one in vectors):
            raise CheckpointError(f"{self.checkpoint} holds something else than plain weights")
        now = self.plan.of_server()
        for name, then in state.plan.items():
            both = min(len(then), len(now[name])) - (name == "noise_std")
            if list(then[:both]) != now[name][:both]:
                raise CheckpointError(
                    f"{self.checkpoint} belongs to another run: {name} was planned as "
                    f"{list(then[:both])!r} and is {now[name][:both]!r} now"
                )
        self.state = replace(state, plan=now)
        self.entries = list(entries)

    def _registered(self) -> dict[int, str]:
        """What is wrong with the samples of clients as they register, by id."""
        settings = self.settings
        found = survey(settings.clients, settings.model, settings.max_input_norm)
        bad = {
            id_: f"{one.unusable} samples cannot be trained on: their label is none of "
            f"the model's, or their input is not finite or too long"
            for id_, one in found.items()
            if one.unusable
        }
        for id_, why in bad.items():
            _LOG.warning("client %d: %s; they count as zero", id_, why)
        return bad

    @property
    def left(self) -> int:
        """Rounds that are not done yet."""
        return self.total - self.state.round

    def result(self) -> Result:
        """What there is after the rounds that are done."""
        ledger = Ledger(
            self.settings.registry,
            tuple(sorted(self.exclude)),
            tuple(self.entries),
            self.unusable,
        )
        local = {id_: self._model(vector) for id_, vector in self.state.locals.items()}
        return Result(self._model(self.state.clipped), ledger, local)

    def invite(self) -> tuple[list[Member], list[Tensor], list[Task]]:
        """Who takes part in the next round, the vector that each starts from, and what each is
        told."""
        settings, index, sent = self.settings, self.state.round + 1, self.state.broadcast
        center, participants = self.layout.split(sent), self._chosen(index)
        tasks, starts = [], []
        for one in participants:
            attack = self.attacks.get(one.id)
            poison = attack.data if attack is not None and attack.active(index) else None
            rates = self.plan.lr.get(one.id)
            task = Task(
                index,
                one.id,
                settings.seed,
                center if mixes(one.trainer) else {},
                poison,
                None if rates is None else rates[index - 1],
                settings.max_input_norm,
            )
            tasks.append(task)
            starts.append(self.state.locals.get(one.id, sent) if mixes(one.trainer) else sent)
        # Read anew: data that grew since the last round would make a false bound.
        surveys = survey(participants, settings.model, settings.max_input_norm)
        self.apart = frozenset(id_ for id_, one in surveys.items() if one.unusable)
        names = Names.now(settings.model, participants)
        self._invitation = _Invitation(participants, tasks, names, surveys)
        return participants, starts, tasks

    def conclude(self, replies: Iterable[tuple[int, Any]]) -> Entry:
        """Make the next state of what the participants of `invite` sent, and save it.

        Args:
            replies: For each participant its position and what it sent: its exchanged tensors by
                name, a `Failure`, or anything at all. Nothing, for those that are not in it.

        Raises:
            RoundError: Too few updates are usable, or the rule makes no finite model of them.
        """
        invitation, self._invitation = self._invitation, None
        if invitation is None:
            raise RuntimeError("conclude needs an invitation: call invite() before each round")
        self.state, entry = self._next(invitation, replies)
        self.entries.append(entry)
        if self._directory is not None:
            self._directory.save(self.state, entry)
        reasons = [one.reason for one in entry.round.participants]
        if why := reasons_of(invitation.participants, reasons):
            _LOG.warning("round %d went on without some clients: %s", entry.round.index, why)
        return entry

    def _model(self, vector: Tensor) -> nn.Module:
        """A model of its own with these weights."""
        return self.layout.write(deepcopy(self.settings.model), vector).eval()

    def _error(self, why: str) -> RoundError:
        """The error of a round that cannot be completed."""
        return RoundError(f"round {self.state.round + 1}: {why}", self.result())

    def _next(
        self, invitation: _Invitation, replies: Iterable[tuple[int, Any]]
    ) -> tuple[State, Entry]:
        """The state after a round, as a function of the one before it and of what the participants
        sent."""
        many, sent = len(invitation.participants), self.state.broadcast
        rows, verdicts = admit(self.layout, many, sent, replies)
        with closing(rows):
            return self._averaged(invitation, rows, verdicts)

    def _averaged(
        self, invitation: _Invitation, rows: Rows, verdicts: list[Verdict]
    ) -> tuple[State, Entry]:
        """The state after a round, from the vectors that came through the door. The words at the
        lines are those of "One federated round", in the documentation."""
        settings, state, participants = self.settings, self.state, invitation.participants
        index, sent = state.round + 1, state.broadcast.double()
        rho, sigma = self.plan.clip[index - 1], self.plan.noise_std[index - 1]
        # Models of their own, as they were before anybody lied about them or shortened them.
        own = {i: rows[i] for i, one in enumerate(participants) if mixes(one.trainer)}
        tamper(rows, verdicts, sent, participants, self.attacks, (settings.seed, index))
        limits = Limits(settings.reject_norm, self.plan.update_clip[index - 1])
        verdicts = screen(rows, verdicts, sent, limits)  # Screening
        weights = np.array([settings.registry[one.id] for one in participants], dtype=np.float64)
        weights /= weights.sum()  # Weights: p_i = n_i / sum n_j
        self._check_enough(participants, verdicts)
        shares = shares_of(weights, verdicts, settings.reject)
        try:
            value, final, mean = averaged(
                settings.aggregate, rows, shares, verdicts, settings.reject
            )
        except ValueError as error:
            raise self._error(str(error)) from error
        step = self.plan.server_step[index - 1]
        if step != 1:
            value = sent + step * (value - sent)  # Aggregation: w_t
        clipped = projected(value, rho, self.layout.trained).to(self.layout.dtype)
        if not bool(torch.isfinite(clipped).all()):
            raise self._error("the aggregated model is not finite")
        noise = self._noise(index, sigma)  # Clip and noise: rho_t above, sigma_t here
        broadcast = clipped.double().clone()  # double() is no copy of what is double already
        broadcast[: self.layout.trained] += noise
        passed = broadcast.to(self.layout.dtype)
        names = invitation.names.both(Names.now(settings.model, participants))
        blank = np.zeros(len(rows))
        outcome = Outcome(weights, blank, blank.copy(), verdicts)
        outcome = measured(rows, shares, mean, sent, outcome)
        keep = settings.keep
        members = recorded(
            participants,
            invitation.tasks,
            names,
            invitation.surveys,
            outcome,
            self.layout,
            samples="samples" in keep,
        )
        record = bounds.Round(
            index=index,
            participants=members,
            broadcast_norm=float(sent[: self.layout.trained].norm()),
            noise_norm=float(noise.norm()),
            noise_std=sigma,
            clip=rho,
            clip_fixed=self._fixed(index),
            update_clip=limits.clip,
            server_step=step,
            weights_from="registration" if settings.sizes is None else "server",
            reject=settings.reject,
            reject_norm=settings.reject_norm,
            aggregator=named_rule(settings.aggregate),
            model=names.model,
            dtype=str(self.layout.dtype).removeprefix("torch."),
            seed=settings.seed,
            sent_hash=self.layout.hashed(state.broadcast),
            model_hash=self.layout.hashed(clipped),
            features_hash=names.features,
            passed_hash=self.layout.hashed(passed),
        )
        updates = rows.matrix(list(range(len(rows)))).double() - sent if "updates" in keep else None
        local = {participants[i].id: vector for i, vector in own.items() if usable(verdicts[i])}
        ends = {participants[i].id: share for i, share in final.items()}
        entry = Entry(record, ends, self._metrics(clipped), updates)
        next_ = replace(
            state,
            round=index,
            clipped=clipped,
            broadcast=passed,
            locals={**state.locals, **local},
        )
        return next_, entry

    def _check_enough(self, participants: Sequence[Member], verdicts: Sequence[Verdict]) -> None:
        """An error where too few updates can be used."""
        used, needed = sum(map(usable, verdicts)), self.settings.min_clients
        if used < needed:
            why = reasons_of(participants, [reason for _, reason in verdicts]) or "nobody failed"
            raise self._error(f"{used} usable updates of {needed} needed ({why})")

    def _fixed(self, index: int) -> bool:
        """Whether the clips of a round stood fast before the first: functions that are asked for
        rounds which were added later may have seen the run."""
        asked = callable(self.settings.clip) or callable(self.settings.update_clip)
        return not asked or index <= self.state.planned

    def _chosen(self, index: int) -> list[Member]:
        """Who takes part, in the order of their ids: sampled among all, then without the
        excluded."""
        settings = self.settings
        many = max(1, round(settings.fraction * len(settings.clients)))
        draw = _draws.rng(settings.seed, index, "participants").choice(
            len(settings.clients), many, replace=False
        )
        chosen = [
            settings.clients[i] for i in np.sort(draw) if settings.clients[i].id not in self.exclude
        ]
        if not chosen:
            raise self._error("every sampled client is excluded")
        return chosen

    def _noise(self, index: int, sigma: float) -> Tensor:
        """The server's noise after a round, one value per trained parameter."""
        device = self.state.broadcast.device
        if not sigma:
            return torch.zeros(1, dtype=torch.float64, device=device)
        normal = _draws.rng(self.settings.seed, index, "noise").standard_normal(self.layout.trained)
        return torch.from_numpy(sigma * normal).to(device)

    def _identity(self) -> dict[str, str]:
        """What tells this run from others, part by part."""
        # The last round is the one without noise: a longer run is another run.
        total = None if self.settings.noise_std is None else self.total
        return run_identity(self.settings, exclude=self.exclude, attacks=self.attacks, rounds=total)

    def _metrics(self, vector: Tensor) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        return {
            str(name): float(value) for name, value in self.evaluate(self._model(vector)).items()
        }
