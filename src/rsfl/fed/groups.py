"""One training run for each of several disjoint groups of clients, none of which can reach another:
together in this process where all the code is ours, in a process of its own for each otherwise."""

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rsfl import _draws, _heap
from rsfl._checks import count, number
from rsfl._progress import progress as shown_progress
from rsfl.assumptions import DEALT_GROUPS, DISJOINT_GROUPS, SEPARATE_GROUPS, Assumption
from rsfl.fed.abreast import Abreast, Asked
from rsfl.fed.client import Client, Member, Remote
from rsfl.fed.ensemble import GroupVote
from rsfl.fed.faults import told, watched
from rsfl.fed.layout import Layout
from rsfl.fed.ours import keeps_nothing
from rsfl.fed.poison import Attack
from rsfl.fed.processes import Group, carried_out
from rsfl.fed.rounds import Rounds
from rsfl.fed.server import Server
from rsfl.fed.settings import Settings
from rsfl.fed.trainer import SGD
from rsfl.fed.training import train

__all__ = [
    "decided",
    "divided",
    "group_clients",
    "grouped",
    "kept_apart",
    "train_groups",
    "voting",
]


def group_clients(
    ids: Sequence[int], groups: int, *, seed: int = 0, roster: Mapping[int, int] | None = None
) -> tuple[tuple[int, ...], ...]:
    """Divide clients into disjoint groups: each by a hash of its own id and the seed alone.

    So one client more or less, or under another id, moves nobody else. Groups are as equal as
    chance makes them, and one may be empty. Where there are as many groups as clients, each client
    is alone: then say ``groups=len(clients)``, so that one client more is one group more; beside a
    number that is not one's own, it would put all clients in groups by their hashes.

    With a ``roster`` clients are dealt out like cards instead, one fact after the other: of those
    with the same fact each group has as many as any other, up to one, and so of all. One entry
    that is other than it was may move everybody: a roster has to be complete before the training.

    Args:
        ids: Of the clients.
        groups: Number of groups.
        seed: Of the hash.
        roster: A registered, public fact of each client by id, as a number: the class that most of
            its samples have, say; the same number for all deals them into equal groups.

    Example:
        >>> sorted(sum(group_clients(range(7), 3), ()))
        [0, 1, 2, 3, 4, 5, 6]
        >>> more, fewer = group_clients(range(9), 3), group_clients(range(8), 3)
        >>> sorted(sum((tuple(set(a) - set(b)) for a, b in zip(more, fewer)), ()))
        [8]
        >>> dealt = group_clients(range(8), 4, roster={id_: id_ // 4 for id_ in range(8)})
        >>> [sorted(id_ // 4 for id_ in group) for group in dealt]
        [[0, 1], [0, 1], [0, 1], [0, 1]]
    """
    ordered = sorted(count("ids", one) for one in ids)
    if len(set(ordered)) < len(ordered):
        raise ValueError(f"ids must be different, got {ordered!r}")
    if not 1 <= count("groups", groups) <= len(ordered):
        raise ValueError(f"groups must be from 1 to the {len(ordered)} clients, got {groups!r}")
    if groups == len(ordered):
        return tuple((id_,) for id_ in ordered)
    found: list[list[int]] = [[] for _ in range(groups)]
    if roster is None:
        for id_ in ordered:
            found[_draws.subseed(seed, "member", id_) % groups].append(id_)
    else:
        if set(roster) != set(ordered):
            raise ValueError(
                f"roster must name the clients {_few(ordered)}, got "
                f"{_few(sorted(roster, key=repr))}"
            )
        facts = {id_: count("roster", fact) for id_, fact in roster.items()}
        drawn = {id_: _draws.subseed(seed, "dealt", id_) for id_ in ordered}
        for place, id_ in enumerate(sorted(ordered, key=lambda one: (facts[one], drawn[one], one))):
            found[place % groups].append(id_)
    return tuple(tuple(sorted(members)) for members in found)


def _few(ids: Sequence[Any]) -> str:
    """The first ids of many, in words."""
    shown = ", ".join(map(repr, ids[:10]))
    return f"{shown}, ... ({len(ids)})" if len(ids) > 10 else shown


@dataclass(frozen=True)
class _Table:
    """A schedule that has been asked already: values by round."""

    values: tuple[float, ...]

    def __call__(self, index: int) -> float:
        return self.values[index - 1]


def train_groups(  # noqa: PLR0913  # a run's settings
    server: Server,
    groups: int,
    rounds: int,
    *,
    num_classes: int,
    roster: Mapping[int, int] | None = None,
    attacks: Mapping[int, Attack] | None = None,
    processes: int | None = None,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> GroupVote:
    """Train one model a group of clients, each as a run of its own under the settings of
    ``server``.

    Groups must not reach one another. Where model, rule, clients, trainers and losses are torch's
    and rsfl's own, which keep nothing from one call to the next, all groups train in this
    process, in stacks where that gives the same result: of clients of one group, or of one client
    of every group where nobody's numbers depend on anybody else's. Code of yours could
    keep something (a rule its velocity, a trainer a buffer, in itself or in its module): then each
    group has a process of its own, forked from this one, which ends with it. An exception, an exit
    or a crash there ends this group alone; so does a client that hangs, with a ``timeout``.

    Args:
        server: The settings, the initial model and the clients.
        groups: Number of groups.
        rounds: Rounds of each run.
        num_classes: Number of labels.
        roster: A registered, public fact of each client by id, by which groups are balanced as
            `group_clients` says. Without one, a hash of its id puts each client in its group.
        attacks: Simulated attackers, by client id.
        processes: How many groups train at the same time, each in a process of its own; 0 for all
            in this one. By default 0 where all the code is ours, and 1 elsewhere.
        timeout: Seconds that a group may take, in a process of its own.
        checkpoint: Directory in which each group's rounds are saved, and from which an interrupted
            training goes on.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: ``processes=0`` with code that is not recognised as ours.
        ValueError: The server gives up late clients: they go on in the background and draw from the
            random state of this process, so that one of them could change the models of other
            groups. Or a timeout without processes, which nothing could enforce.
        RuntimeError: No more than half of the groups have a model; the message names the others.
    """
    if server.timeout is not None:
        raise ValueError(
            f"server must have no timeout, or groups would not be independent, got "
            f"{server.timeout!r}; give train_groups one"
        )
    if unknown := set(attacks or {}) - {one.id for one in server.clients}:
        raise ValueError(f"attacks must name clients of the server, got {sorted(unknown)!r}")
    rounds, ours = count("rounds", rounds, 1), keeps_nothing(server)
    num_classes = count("num_classes", num_classes, 2)
    processes = (0 if ours else 1) if processes is None else count("processes", processes)
    if not processes and not ours:
        raise TypeError(
            "processes must be at least 1 for a rule, model, client, trainer or loss that is not "
            "rsfl's or torch's own: in one process it could keep something from group to group"
        )
    if timeout is not None:
        number("timeout", timeout, 0.0, open_low=True)
        if not processes:
            raise ValueError(f"timeout needs processes of at least 1, got timeout={timeout!r}")
    everyone = divided(server, groups, roster)
    settings = decided(server, rounds) if not processes else server
    parts = grouped(settings, everyone, attacks or {}, checkpoint)
    if processes:
        carried_out(parts, rounds, processes, timeout, progress)
    else:
        # A client that is alone has no group: how many there are is then no setting.
        abreast = Abreast(server.model, groups if groups < len(server.clients) else 0)
        _here(parts, abreast, rounds, progress)
    return voting(server.model, everyone, parts, num_classes, kept_apart(server, groups, roster))


def divided(
    server: Settings, groups: int, roster: Mapping[int, int] | None
) -> tuple[tuple[int, ...], ...]:
    """The clients of each group."""
    everybody = [one.id for one in server.clients]
    return group_clients(everybody, groups, seed=server.seed, roster=roster)


def grouped(
    server: Settings,
    everyone: tuple[tuple[int, ...], ...],
    attacks: Mapping[int, Attack],
    checkpoint: str | os.PathLike[str] | None,
) -> list[Group]:
    """The run of each group that has clients."""
    alone = len(everyone) == len(server.clients)
    return [
        Group(
            at,
            _part(server, members, ("alone", members[0]) if alone else ("group", at)),
            {id_: attack for id_, attack in attacks.items() if id_ in members},
            None if checkpoint is None else Path(checkpoint) / f"group-{at:04d}",
        )
        for at, members in enumerate(everyone)
        if members
    ]


def kept_apart(
    server: Settings, groups: int, roster: Mapping[int, int] | None
) -> tuple[Assumption, ...]:
    """What keeps groups apart that are trained here; a roster matters where groups are shared."""
    dealt = roster is not None and groups < len(server.clients)
    return (DEALT_GROUPS if dealt else DISJOINT_GROUPS, SEPARATE_GROUPS)


def voting(
    model: nn.Module,
    everyone: tuple[tuple[int, ...], ...],
    parts: Sequence[Group],
    num_classes: int,
    apart: tuple[Assumption, ...],
) -> GroupVote:
    """The models that there are, and why the others are not."""
    models: list[nn.Module | None] = [None] * len(everyone)
    failed = {at: "has no clients" for at, members in enumerate(everyone) if not members}
    layout = Layout.of(model)
    for one in parts:
        if one.vector is None:
            failed[one.number] = one.failure
        else:
            models[one.number] = layout.write(deepcopy(model), one.vector).eval()
    if 2 * len(failed) >= len(everyone):
        named = "; ".join(f"group {at} {why}" for at, why in sorted(failed.items())[:5])
        raise RuntimeError(
            f"more than half of the groups must have a model, got "
            f"{len(everyone) - len(failed)} of {len(everyone)}: {named}"
        )
    ledgers = {one.number: one.ledger for one in parts if one.ledger is not None}
    return GroupVote(tuple(models), everyone, num_classes, failed, apart, ledgers)


def _part(server: Settings, members: Iterable[int], key: tuple[str, int]) -> Settings:
    """The settings of one group: its own clients, and draws that nobody else has."""
    own = set(members)
    return replace(
        server,
        clients=[one for one in server.clients if one.id in own],
        sizes=None if server.sizes is None else {id_: server.sizes[id_] for id_ in own},
        seed=_draws.subseed(server.seed, *key) >> 11,
    )


def decided(server: Settings, rounds: int) -> Settings:
    """The same settings with tables in place of schedules: asked once for all groups."""
    plan = server.plan(rounds)
    decided: dict[str, Any] = {
        name: _Table(tuple(values))
        for name, values in plan.of_server().items()
        if callable(getattr(server, name))
    }
    trainers: dict[int, Any] = {}
    clients: list[Member] = []
    for one in server.clients:
        trainer = one.trainer
        if isinstance(one, (Client, Remote)) and isinstance(trainer, SGD) and callable(trainer.lr):
            table = _Table(plan.lr[one.id])
            known = trainers.setdefault(id(trainer), replace(trainer, lr=table))
            clients.append(replace(one, trainer=known))
        else:
            clients.append(one)
    return replace(server, clients=clients, **decided)


def _here(everyone: Sequence[Group], abreast: Abreast, rounds: int, progress: bool) -> None:
    """Carry all groups out in this process, a round of all of them at once."""
    runs = {one.number: one.rounds(rounds) for one in everyone}
    groups = {one.number: one for one in everyone}
    done = rounds - max((run.left for run in runs.values()), default=0)
    told_ = shown_progress(rounds, shown=progress, what="groups", unit="round", initial=done)
    with _heap.kept(), watched(), told_ as bar:
        while active := [at for at, run in runs.items() if run.left and not groups[at].failure]:
            _round({at: runs[at] for at in active}, groups, abreast)
            bar.update(1)
    for at, run in runs.items():
        if not groups[at].failure:
            groups[at].done(run)


def _round(runs: Mapping[int, Rounds], groups: Mapping[int, Group], abreast: Abreast) -> None:
    """One round of each run. Who else is in a stack decides how its sums are rounded, and no group
    may depend on another one's clients, not to the last bit: stacks hold clients of one group
    alone, or of all groups abreast."""
    asked: dict[int, Asked] = {}
    for at, run in runs.items():
        try:
            asked[at] = Asked(*run.invite(), run.apart)
        except Exception as error:
            groups[at].failure = told(error)
    stacked = {at: one for at, one in asked.items() if runs[at].settings.stacked}
    ready = abreast.fit(stacked)
    for at, one in asked.items():
        run = runs[at]
        replies = train(
            abreast.model,
            one.participants,
            one.starts,
            one.tasks,
            stacked=run.settings.stacked,
            apart=one.apart,
            ready=ready.pop(at, {}),
        )
        try:
            run.conclude(replies)
        except Exception as error:
            groups[at].failure = told(error)
