"""The settings of a federated run: a frozen value, which whoever carries it out reads."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsfl._checks import choice, count, number, stored
from rsfl._fingerprint import identity
from rsfl.fed.aggregate import Mean, Rule
from rsfl.fed.client import Client, Member, Remote
from rsfl.fed.layout import Layout
from rsfl.fed.plan import Plan, Schedules
from rsfl.fed.trainer import SGD, Schedule, Task, Trainer, at_round

__all__ = ["Registered", "Settings", "run_identity"]

_KEEP = ("samples", "updates")


@dataclass(frozen=True, eq=False)
class Registered:
    """A participant of somebody else's class: what it said of itself when it registered, once.

    Args:
        id: A whole number, different for every participant.
        size: Number of its samples.
        trainer: How it is told to train.
        member: Who it is.
    """

    id: int
    size: int
    trainer: Trainer
    member: Member = field(repr=False)

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Tensor]:
        """What the participant sends."""
        return self.member.fit(model, task)


@dataclass(frozen=True)
class Settings:
    """What `rsfl.fed.Server` describes, whose arguments these are."""

    model: nn.Module = field(repr=False)
    clients: Sequence[Member] = field(repr=False)
    _: KW_ONLY
    aggregate: Rule = field(default_factory=Mean)
    fraction: float = 1.0
    server_step: Schedule = 1.0
    clip: Schedule | None = None
    noise_std: Schedule | None = None
    update_clip: Schedule | None = None
    reject_norm: float = 1e6
    reject: Literal["zero", "renormalise"] = "zero"
    min_clients: int = 1
    sizes: Mapping[int, int] | None = None
    max_input_norm: float = inf
    timeout: float | None = None
    stacked: bool = True
    keep: Collection[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        Layout.of(self.model)
        self._check_numbers()
        choice("reject", self.reject, ("zero", "renormalise"))
        keep = frozenset(choice("keep", what, _KEEP) for what in self.keep)
        stored(self, keep=keep, clients=tuple(self._registered()))
        if self.sizes is not None:
            ids = {one.id for one in self.clients}
            if set(self.sizes) != ids:
                raise ValueError(
                    f"sizes must name the clients {sorted(ids)!r}, got {sorted(self.sizes)!r}"
                )
            stored(self, sizes={id_: count("sizes", n, 1) for id_, n in dict(self.sizes).items()})

    def _check_numbers(self) -> None:
        """Plain numbers from here on; schedules are asked when a run begins."""
        number("fraction", self.fraction, 0.0, 1.0, open_low=True)
        number("reject_norm", self.reject_norm, 0.0, open_low=True)
        number("max_input_norm", self.max_input_norm, 1.0)
        for name in ("server_step", "clip", "noise_std", "update_clip"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                stored(self, **{name: at_round(name, value, 1)})
        if self.timeout is not None:
            number("timeout", self.timeout, 0.0, inf, open_low=True, open_high=True)
        count("min_clients", self.min_clients, 1)
        count("seed", self.seed)

    def _registered(self) -> Iterator[Member]:
        """The clients by their ids, each asked once who it is."""
        found: dict[int, Member] = {}
        for one in self.clients:
            ours = type(one) in (Client, Remote, Registered)
            id_ = count("clients", one.id)
            if id_ in found:
                raise ValueError(f"clients must have different ids, got {id_!r} twice")
            found[id_] = (
                one if ours else Registered(id_, count("size", one.size, 1), one.trainer, one)
            )
        if not found:
            raise ValueError("clients must be at least one, got none")
        return (found[id_] for id_ in sorted(found))

    @cached_property
    def registry(self) -> Mapping[int, int]:
        """Number of samples of each client by id, from which the weights come."""
        sizes = {one.id: one.size for one in self.clients} if self.sizes is None else self.sizes
        return {id_: sizes[id_] for id_ in sorted(sizes)}

    @cached_property
    def _schedules(self) -> Schedules:
        return Schedules()

    def plan(self, rounds: int) -> Plan:
        """What the schedules say for so many rounds: the same whenever it is asked.

        Raises:
            TypeError, ValueError: A schedule gives something else than a positive number; the
                message names a client's.
        """
        first = self._schedules.first
        # The last round has no noise, and is not asked for any.
        noise = (
            first("noise_std", self.noise_std, rounds - 1)
            if self.noise_std
            else (0.0,) * (rounds - 1)
        )
        rates: dict[int, tuple[float, ...]] = {}
        for one in self.clients:
            if isinstance(one.trainer, SGD):
                rates[one.id] = first(f"lr of client {one.id}", one.trainer.lr, rounds)
        return Plan(
            clip=first("clip", self.clip, rounds),
            update_clip=first("update_clip", self.update_clip, rounds),
            server_step=first("server_step", self.server_step, rounds),
            noise_std=(*noise, 0.0),
            lr=rates,
        )


def run_identity(settings: Settings, **others: Any) -> dict[str, str]:
    """What tells a run from others, part by part; functions count by their names.

    Args:
        settings: Those of the server.
        others: What else the run depends on, by name.
    """
    model = settings.model
    everyone = [one.member if type(one) is Registered else one for one in settings.clients]
    own = [one for one in everyone if isinstance(one, Client)]
    parts: dict[str, Any] = {
        one.name: getattr(settings, one.name) for one in fields(Settings) if one.name != "clients"
    }
    parts |= {
        "model": (type(model).__name__, [*model.named_parameters(), *model.named_buffers()]),
        "sizes": settings.registry,
        "trainers": [one.trainer for one in settings.clients],
        # Each its own: of a data set that clients of a hundred groups share, nobody reads all.
        "samples": [(*one.samples(), torch.from_numpy(one.where)) for one in own],
    }
    return identity(parts | others)
