"""One round of local training for many clients: stacked where that gives the same result, one by one elsewhere."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from copy import deepcopy
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from rsfl._checks import Int64
from rsfl.fed import draws
from rsfl.fed.client import SGD, Client, CrossEntropy, Participant, Stackable, Task, at_round
from rsfl.fed.layout import Layout

__all__ = ["Failure", "train"]

_STACK = 1 << 21  # parameters of a stack: beyond it batched products leave the cache and gain nothing


class Failure(str):
    """Why a client sent nothing, in words."""

    __slots__ = ()


def train(
    model: nn.Module,
    participants: Sequence[Participant],
    starts: Sequence[Tensor],
    tasks: Sequence[Task],
    *,
    stacked: bool = True,
    timeout: float | None = None,
) -> list[Any]:
    """What each participant sends back, in order: its exchanged tensors by name, or a `Failure`, or anything at all.

    Clients that train by the same `SGD` with a `Stackable` loss are trained together if the model allows it; the result
    is the same to rounding. Any trouble in a stack sends its clients back to one by one, where it is told who had it.

    Arguments:
        model: The architecture; it is not changed.
        participants: The clients.
        starts: The vector that each of them starts from.
        tasks: What each is told.
        stacked: Whether clients may be trained together.
        timeout: Seconds after which a client is given up; such clients train one by one.
    """
    layout = Layout.of(model)
    replies: dict[int, Any] = {}
    together = stacked and timeout is None and len(layout.shapes) == layout.parameters and not _buffers(model)
    for group in _groups(participants, layout) if together else ():
        chosen = [participants[i] for i in group]
        try:
            rows = _fit_stacked(model, layout, chosen, torch.stack([starts[i] for i in group]), [tasks[i] for i in group])
        except Exception:  # a stack has no culprit: find it one by one
            continue
        replies.update((i, layout.split(row)) for i, row in zip(group, rows, strict=True))
    for i, participant in enumerate(participants):
        if i not in replies:
            private = layout.write(deepcopy(model), starts[i]).train()
            replies[i] = _fit_alone(participant, private, tasks[i], timeout)
    return [replies[i] for i in range(len(participants))]


def _buffers(model: nn.Module) -> bool:
    return any(True for _ in model.buffers())


def _fit_alone(participant: Participant, model: nn.Module, task: Task, timeout: float | None) -> Any:
    """One client, its exceptions told as a `Failure`, the global random state as keyed as everything else."""
    outcome: list[Any] = [Failure("was late")]

    def work() -> None:
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            # Dropout and trainers that know no generator draw from the global state.
            torch.manual_seed(draws.subseed(task.seed, task.round, task.client, "global"))
            try:
                outcome[0] = participant.fit(model, task)
            except Exception as error:
                outcome[0] = Failure(f"raised {type(error).__name__}: {error}")

    if timeout is None:
        work()
        return outcome[0]
    begin, thread = perf_counter(), Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    # A thread cannot be killed: a late client goes on in the background, on a model of its own, and is not listened to.
    return Failure("was late") if thread.is_alive() or perf_counter() - begin > timeout else outcome[0]


def _groups(participants: Sequence[Participant], layout: Layout) -> Iterable[list[int]]:
    """Positions of clients that can be stacked: one trainer, one kind of input."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, one in enumerate(participants):
        if type(one) is Client and type(one.trainer) is SGD and isinstance(one.trainer.loss, Stackable):
            groups[id(one.trainer), one.x.shape[1:], one.x.dtype, one.x.device].append(i)
    size = max(1, _STACK // max(1, layout.trained))
    for group in groups.values():
        for start in range(0, len(group), size):
            if len(group[start : start + size]) > 1:
                yield group[start : start + size]


def _fit_stacked(
    model: nn.Module, layout: Layout, clients: Sequence[Any], starts: Tensor, tasks: Sequence[Task]
) -> Tensor:
    """The vectors (C, d) of clients trained as one by their common trainer, whose steps are those of `SGD`."""
    trainer: SGD = clients[0].trainer
    pointwise: Any = trainer.loss
    schedules = [trainer.batches(client.size, task) for client, task in zip(clients, tasks, strict=True)]
    # Longest schedules first: the clients that still train are always the first so many rows.
    order = sorted(range(len(clients)), key=lambda i: -len(schedules[i]))
    schedules = [schedules[i] for i in order]
    batches = _Batches([clients[i] for i in order], [tasks[i] for i in order])
    values = {name: value.clone() for name, value in layout.split(starts[order]).items()}
    velocities = {name: torch.zeros_like(value) for name, value in values.items()} if trainer.momentum else values
    decays, lr = trainer.decays(layout), at_round("lr", trainer.lr, tasks[0].round)
    skeleton = deepcopy(model).train().requires_grad_(False)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, shares: Tensor) -> Tensor:
        return (pointwise.losses(functional_call(skeleton, parameters, (x,)), y) * shares).sum()

    gradient = vmap(grad(loss))
    for step in range(len(schedules[0])):
        drawn = [schedule[step] for schedule in schedules if len(schedule) > step]
        now = {name: value[: len(drawn)] for name, value in values.items()}
        gradients = gradient(now, *batches(drawn, layout.dtype))
        trainer.descend(
            list(now.values()),
            [gradients[name] for name in now],
            [velocities[name][: len(drawn)] for name in now],
            decays,
            [tasks[0].center.get(name, value) for name, value in now.items()],
            lr,
        )
    rows = torch.empty_like(starts)
    rows[order] = torch.cat([value.flatten(1) for value in values.values()], dim=1)
    return rows


class _Batches:
    """One mini-batch a client, made rectangular: inputs (C, B, ...), labels (C, B), the share of each sample (C, B)."""

    def __init__(self, clients: Sequence[Client], tasks: Sequence[Task]) -> None:
        x, y = clients[0].x, clients[0].y
        self.clients = clients
        self.poisons = [task.poison for task in tasks]
        self.generators = [task.generator("loss", x.device) for task in tasks]
        self.loss: Any = clients[0].trainer.loss  # type: ignore[attr-defined]
        shared = all(client.x is x and client.y is y for client in clients)
        as_it_is = type(self.loss) is CrossEntropy and self.loss.law is None and not any(self.poisons)
        self.gathered = shared and as_it_is  # one look-up serves all the clients

    def __call__(self, drawn: Sequence[Int64], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        lengths = np.array([len(batch) for batch in drawn])
        inside = np.arange(lengths.max()) < lengths[:, None]
        # A short batch is filled up with its own first sample, which then weighs nothing.
        full = [np.pad(batch, (0, lengths.max() - len(batch)), constant_values=batch[0]) for batch in drawn]
        shares = torch.from_numpy(inside / lengths[:, None]).to(self.clients[0].x.device, dtype)
        places = [client.where[batch] for client, batch in zip(self.clients, full, strict=False)]
        if self.gathered:
            where = torch.from_numpy(np.stack(places)).to(shares.device)
            return self.clients[0].x[where], self.clients[0].y[where], shares
        inputs, labels = [], []
        for i, length in enumerate(lengths):
            where = torch.from_numpy(places[i]).to(shares.device)
            x, y = self.clients[i].x[where[:length]], self.clients[i].y[where[:length]]
            poison = self.poisons[i]
            if poison is not None:
                x, y = poison(x, y)
            x = self.loss.inputs(x, self.generators[i])
            fill = [*range(length), *([0] * (len(where) - length))]
            inputs.append(x[fill])
            labels.append(y[fill])
        return torch.stack(inputs), torch.stack(labels), shares
