"""Clients of many groups, one of each group abreast: stacks in which nobody's numbers depend on
anybody else's, not to the last bit."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rsfl._draws import generator
from rsfl.fed.client import Client, Member
from rsfl.fed.layout import Layout
from rsfl.fed.stacked import fit_stacked
from rsfl.fed.trainer import Task
from rsfl.fed.training import STACK, kind, stackable

__all__ = ["Abreast", "Asked"]

# What is computed by products of matrices, one for each place in a stack, and by numbers alone.
_LAYERS = (nn.Sequential, nn.Flatten, nn.Linear, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid)
_GARBAGE = (torch.nan, torch.inf, -torch.inf, 3e38, 1e-45)


@dataclass(frozen=True)
class Asked:
    """What one group's clients are told in a round."""

    participants: Sequence[Member]
    starts: Sequence[Tensor]
    tasks: Sequence[Task]
    apart: Collection[int]


@dataclass(frozen=True)
class _Seat:
    """A client in its place."""

    group: int
    position: int
    client: Client
    start: Tensor
    task: Task


class Abreast:
    """Trains the k-th client of every group in one stack, for each k.

    Each group has a place of its own in every stack, and a place without a client is filled up. So
    the shapes of what is computed are a function of the settings and of the kind of a client, not
    of who else is there; and of one shape, a product of matrices for each place is computed from
    what is in that place. That this machine does so is seen before it is used: with garbage in the
    other places the same bits must come out.

    Args:
        model: The architecture.
        groups: Number of places.
    """

    def __init__(self, model: nn.Module, groups: int) -> None:
        self.model, self.groups, self.layout = model, groups, Layout.of(model)
        self.known = (
            groups > 1
            and all(type(module) in _LAYERS for module in model.modules())
            and next(model.parameters()).device.type == "cpu"
            and self.layout.trained * groups <= STACK
        )
        self.classes = next(p for p in reversed(list(model.parameters()))).shape[0]
        self._sure: dict[Hashable, bool] = {}

    def fit(self, asked: Mapping[int, Asked]) -> dict[int, dict[int, Any]]:
        """What clients send, by group and position, of those that train in such stacks.

        Args:
            asked: What is asked of the clients of each group.
        """
        found: dict[int, dict[int, Any]] = {at: {} for at in asked}
        for (_, width), columns in self._kinds(asked).items():
            for seats in columns:
                for seat, row in self._rows(seats, width):
                    found[seat.group][seat.position] = self.layout.split(row)
        return found

    def _rows(self, seats: Sequence[_Seat], width: int) -> Iterator[tuple[_Seat, Tensor]]:
        """What comes of each seat. A stack that fails is taken up again with one client at a time,
        whose numbers are the same with nobody beside it: so the others have theirs, to the last
        bit, and who made it fail trains in its own group."""
        try:
            rows = self._stack(seats, width)
        except Exception:
            for seat in seats if len(seats) > 1 else ():
                yield from self._rows([seat], width)
        else:
            for seat in seats:
                yield seat, rows[seat.group]

    def _kinds(self, asked: Mapping[int, Asked]) -> dict[tuple[Hashable, int], list[list[_Seat]]]:
        """The stacks of each kind of client: the k-th of every group is in the k-th."""
        kinds: dict[tuple[Hashable, int], list[list[_Seat]]] = defaultdict(list)
        for at, one in asked.items():
            taken: dict[tuple[Hashable, int], int] = defaultdict(int)
            for position, member in enumerate(one.participants):
                task, client = one.tasks[position], cast("Client", member)
                try:
                    key = self._key(client, task, one.apart)
                except Exception:  # samples that cannot even be looked at: its own group will tell
                    continue
                if key is None:
                    continue
                if taken[key] == len(kinds[key]):
                    kinds[key].append([])
                seat = _Seat(at, position, client, one.starts[position], task)
                kinds[key][taken[key]].append(seat)
                taken[key] += 1
        return kinds

    def _key(
        self, client: Client, task: Task, apart: Collection[int]
    ) -> tuple[Hashable, int] | None:
        """The kind of a client, and the width of its batches; None if it trains in its own
        group."""
        joins = (
            self.known
            and stackable(client)
            and task.poison is None
            and not task.center
            and client.id not in apart
        )
        if not joins:
            return None
        key = kind(client, task), _width(client)
        return key if self._apart(client, task, key) and self._labelled(client) else None

    def _labelled(self, client: Client) -> bool:
        """Whether a client's labels are classes of the model, one a sample: what else they are
        could raise, and then for all who are in the stack."""
        labels = client.y[torch.from_numpy(client.where)]
        return labels.ndim == 1 and bool((labels >= 0).all() and (labels < self.classes).all())

    def _stack(self, seats: Sequence[_Seat], width: int) -> Tensor:
        """The vectors of a stack, a row a group."""
        first = seats[0]
        idle = replace(first.client, indices=first.client.where[:1])
        clients: list[Client] = [idle] * self.groups
        tasks = [first.task] * self.groups
        starts = torch.zeros((self.groups, len(first.start)), dtype=first.start.dtype)
        for seat in seats:
            clients[seat.group], tasks[seat.group] = seat.client, seat.task
            starts[seat.group] = seat.start
        return fit_stacked(self.model, self.layout, clients, starts, tasks, width)

    def _apart(self, client: Client, task: Task, key: tuple[Hashable, int]) -> bool:
        """Whether what is in one place of such stacks reaches no other: seen on made-up clients of
        this kind."""
        width = key[1]
        if width * client.x[0].numel() * self.groups > 4 * STACK:
            return False
        if key not in self._sure:
            try:
                self._sure[key] = self._seen(client, task, width)
            except Exception:  # inputs or labels of a kind that the model cannot take
                self._sure[key] = False
        return self._sure[key]

    def _seen(self, client: Client, task: Task, width: int) -> bool:
        """Whether garbage in every other place leaves all the others as they are."""
        draws, many = generator(0, "abreast"), self.groups * width
        x = torch.rand((many, *client.x.shape[1:]), generator=draws).to(client.x.dtype)
        y = torch.zeros(many, dtype=client.y.dtype)
        places = torch.arange(many).view(self.groups, width).numpy()
        trainer: Any = replace(client.trainer, lr=0.1, steps=2)  # type: ignore[type-var]
        tasks = [replace(task, lr=0.1)] * self.groups
        size = sum(shape.numel() for shape in self.layout.shapes.values())
        starts = torch.randn((self.groups, size), generator=draws).to(self.layout.dtype) / 10

        def rows(spoiled: Collection[int]) -> Tensor:
            inputs, begun = x.clone(), starts.clone()
            for number, at in enumerate(spoiled):
                inputs[places[at]] = _GARBAGE[number % len(_GARBAGE)]
                begun[at] = _GARBAGE[(number // len(_GARBAGE)) % len(_GARBAGE)]
            made = [Client(at, inputs, y, trainer, places[at]) for at in range(self.groups)]
            return fit_stacked(self.model, self.layout, made, begun, tasks, width)

        clean = rows(())
        halves = [range(part, self.groups, 2) for part in (0, 1)]
        return all(
            torch.equal(rows(halves[1 - part])[list(halves[part])], clean[list(halves[part])])
            for part in (0, 1)
        )


def _width(client: Client) -> int:
    """Width of a client's batches, which nobody else decides: a full one's, or a size to which
    shorter ones are filled up, so that clients of about one size share stacks."""
    trainer: Any = client.trainer
    if trainer.batch_size is not None and client.size >= trainer.batch_size:
        return int(trainer.batch_size)
    octave = 1 << (client.size - 1).bit_length()
    return 3 * octave // 4 if octave >= 4 and client.size <= 3 * octave // 4 else octave
