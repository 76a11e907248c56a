"""One round of local training for many clients: stacked where that gives the same result, one by
one elsewhere."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf
from threading import Thread
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

from rsfl import _draws
from rsfl._checks import Int64
from rsfl._models import affine_layer
from rsfl.attacks import checked_labels
from rsfl.fed.client import Client, Member
from rsfl.fed.faults import theirs, told
from rsfl.fed.layout import Layout
from rsfl.fed.ours import is_ours
from rsfl.fed.trainer import SGD, Stackable, Task
from rsfl.train import CrossEntropy

__all__ = ["STACK", "Failure", "fit_alone", "fit_stacked", "kind", "stackable", "train"]

# Numbers in the parameters or in a batch of a stack: bounds its memory, and gains nothing beyond.
STACK = 1 << 22

# Multiplications in the convolutions of a client's batch, beyond which a CPU takes longer for a
# stack than for its clients: it has no good way to convolve images with weights of their own.
_CONVOLVED = 4_000_000


class Failure(str):
    """Why a client sent nothing, in words."""

    __slots__ = ()


def train(
    model: nn.Module,
    participants: Sequence[Member],
    starts: Sequence[Tensor],
    tasks: Sequence[Task],
    *,
    stacked: bool = True,
    apart: Collection[int] = (),
    timeout: float | None = None,
    ready: Mapping[int, Any] | None = None,
) -> Iterator[tuple[int, Any]]:
    """What each participant sends back, by its position: its exchanged tensors by name, or a
    `Failure`, or anything at all. Whoever takes them one by one holds no more than a stack.

    Clients that train by the same `SGD` with a `Stackable` loss are trained together if the model
    allows it; the result is the same to rounding. Attackers train one by one, since what they do
    may draw from the global random state. Any trouble in a stack sends its clients back to one by
    one, where it is told who had it.

    Args:
        model: The architecture; it is not changed.
        participants: The clients.
        starts: The vector that each of them starts from.
        tasks: What each is told.
        stacked: Whether clients may be trained together.
        apart: Ids of clients that train one by one in any case.
        timeout: Seconds after which a client is given up; such clients train one by one.
        ready: What some of them send, by position, who have trained already.
    """
    layout = Layout.of(model)
    done: set[int] = set(ready or {})
    yield from (ready or {}).items()
    together = stacked and timeout is None and not any(True for _ in model.buffers())
    honest = [
        i
        for i, (one, task) in enumerate(zip(participants, tasks, strict=True))
        if together and i not in done and task.poison is None and one.id not in apart
    ]
    stacks = _groups([participants[i] for i in honest], [tasks[i] for i in honest], layout, model)
    for members in stacks:
        group = [honest[k] for k in members]
        chosen = [participants[i] for i in group]
        try:
            rows = fit_stacked(
                model,
                layout,
                chosen,
                torch.stack([starts[i] for i in group]),
                [tasks[i] for i in group],
            )
        except Exception:  # a stack has no culprit: find it one by one
            continue
        done.update(group)
        yield from ((i, layout.split(row)) for i, row in zip(group, rows, strict=True))
    for i, participant in enumerate(participants):
        if i not in done:
            private = layout.write(deepcopy(model), starts[i]).train()
            yield i, fit_alone(participant, private, _own(tasks[i], participant), timeout)


def _own(task: Task, participant: Member) -> Task:
    """The task with a centre of its own, where code of somebody else's could write into it."""
    if not task.center or type(participant.trainer) is SGD:
        return task
    return replace(task, center={name: value.clone() for name, value in task.center.items()})


def _convolved(model: nn.Module, x: Tensor) -> int:
    """Multiplications that one of these inputs takes, where layers of torch convolve it on a
    CPU."""
    kinds = nn.modules.conv._ConvNd
    convolves = any(isinstance(one, kinds) for one in model.modules())
    if x.device.type != "cpu" or not (convolves and _by_sample(model)):
        return 0
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            deepcopy(model).to("meta")(torch.empty_like(x[:1], device="meta"))
    except Exception:  # it does without shapes alone, or fails with them: one by one will tell
        return 0
    return int(counter.get_total_flops()) // 2


def _by_sample(model: nn.Module) -> bool:
    """Whether the samples of a batch certainly do not interact: layers of torch that treat each on
    its own."""
    known = ("activation", "container", "conv", "flatten", "linear", "pooling")
    return all(
        type(module).__module__ in {f"torch.nn.modules.{name}" for name in known}
        for module in model.modules()
    )


def fit_alone(
    participant: Member, model: nn.Module, task: Task, timeout: float | None = None
) -> Any:
    """One client, its exceptions told as a `Failure`, the global random state as keyed as
    everything else."""
    outcome: list[Any] = [Failure("was late")]

    def work() -> None:
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            # Dropout and trainers that know no generator draw from the global state.
            _draws.seed_global(task.seed, task.round, task.client, "global")
            try:
                reply = participant.fit(model, task)
                outcome[0] = (
                    None if isinstance(reply, Failure) else reply
                )  # why it is absent is not its own to say
            except BaseException as error:
                if not theirs(error):
                    raise
                outcome[0] = Failure(f"raised {told(error)}")

    if timeout is None:
        work()
        return outcome[0]
    begin, thread = perf_counter(), Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    return (
        Failure("was late") if thread.is_alive() or perf_counter() - begin > timeout else outcome[0]
    )


def _groups(
    participants: Sequence[Member], tasks: Sequence[Task], layout: Layout, model: nn.Module
) -> Iterable[list[int]]:
    """Positions of clients that can be stacked: one trainer, one kind of input, and batches of one
    size.

    Where samples do not interact, batches of any sizes will do: the short ones are filled up. Large
    convolutions on a CPU are not stacked.
    """
    by_sample = _by_sample(model)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, one in enumerate(participants):
        if stackable(one):
            client: Any = one
            sizes = () if by_sample else client.trainer.batch_sizes(one.size)
            center = id(tasks[i].center) if tasks[i].center else None
            groups[kind(client, tasks[i]), center, sizes].append(i)
    for group in groups.values():
        first: Any = participants[group[0]]
        width = min(first.trainer.batch_size or inf, max(participants[i].size for i in group))
        if width * _convolved(model, first.x) > _CONVOLVED:
            continue
        size = int(STACK // max(layout.trained, width * first.x[0].numel())) + 1
        for start in range(0, len(group), size):
            if len(group[start : start + size]) > 1:
                yield group[start : start + size]


def stackable(one: Member) -> bool:
    """Whether a client trains by steps that many can take at once."""
    return (
        type(one) is Client
        and is_ours(one, Client)
        and type(one.trainer) is SGD
        and is_ours(one.trainer, SGD)
        and isinstance(one.trainer.loss, Stackable)
    )


def kind(client: Client, task: Task) -> Hashable:
    """The same for clients whose steps are the same, on inputs of one kind."""
    data = client.x.shape[1:], client.x.dtype, client.x.device, client.y.dtype
    return _steps(client.trainer), task.lr, data  # type: ignore[arg-type]


def _steps(trainer: SGD) -> Hashable:
    """The same for trainers that do the same: groups of clients have copies of their own."""
    loss: Any = trainer.loss
    if not is_ours(loss, CrossEntropy) or loss.law is not None:
        return id(trainer)
    decay = trainer.decay
    named = tuple(sorted(decay.items())) if isinstance(decay, Mapping) else decay
    steps = (trainer.batch_size, trainer.epochs, trainer.steps)
    rate = id(trainer.lr) if callable(trainer.lr) else trainer.lr
    return (rate, *steps, trainer.momentum, named, trainer.mixture)


def fit_stacked(
    model: nn.Module,
    layout: Layout,
    clients: Sequence[Any],
    starts: Tensor,
    tasks: Sequence[Task],
    width: int | None = None,
) -> Tensor:
    """The vectors (C, d) of clients trained as one by their common trainer, whose steps are those
    of `SGD`.

    Args:
        model: The architecture.
        layout: Its parameters as a vector.
        clients: Who trains.
        starts: What each starts from (C, d).
        tasks: What each is told.
        width: Of every batch, where shapes must not depend on who is in the stack: then each stays
            in its place, and takes no step after its last.
    """
    trainer: SGD = clients[0].trainer
    pointwise: Any = trainer.loss
    schedules = [
        trainer.batches(client.size, task) for client, task in zip(clients, tasks, strict=True)
    ]
    # Longest schedules first: the clients that still train are always the first so many rows.
    order = list(range(len(clients)))
    if width is None:
        order.sort(key=lambda i: -len(schedules[i]))
    schedules = [schedules[i] for i in order]
    batches = _Batches([clients[i] for i in order], [tasks[i] for i in order], schedules, width)
    values = {name: value.clone() for name, value in layout.split(starts[order]).items()}
    velocities = (
        {name: torch.zeros_like(value) for name, value in values.items()}
        if trainer.momentum
        else values
    )
    decays, lr = trainer.decays(layout), tasks[0].rate(trainer.lr)
    skeleton = deepcopy(model).train().requires_grad_(False)

    gradients = _by_hand(model, pointwise, values) or _by_autograd(skeleton, pointwise)
    for step in range(max(map(len, schedules))):
        goes_on = torch.tensor([len(schedule) > step for schedule in schedules])
        active = int(goes_on.sum()) if width is None else len(clients)
        done = ~goes_on[:active]
        now = {name: value[:active] for name, value in values.items()}
        downhill = gradients(now, *batches(step, active, layout.dtype))
        with torch.no_grad():
            ends = [value[done] for value in now.values()] if bool(done.any()) else []
            trainer.descend(
                list(now.values()),
                downhill,
                [velocities[name][:active] for name in now],
                decays,
                [tasks[0].center.get(name, value) for name, value in now.items()],
                lr,
            )
            for value, end in zip(now.values(), ends, strict=False):
                value[done] = end
    rows = torch.empty_like(starts)
    rows[order] = torch.cat([value.flatten(1) for value in values.values()], dim=1)
    return rows


_Gradients: TypeAlias = Callable[[Mapping[str, Tensor], Tensor, Tensor, Tensor], Sequence[Tensor]]
"""Of parameters (C, ...) by name, inputs (C, B, ...), labels (C, B) and the share of each sample:
the gradients of all the clients, in the order of the parameters."""


def _by_autograd(skeleton: nn.Module, loss: Any) -> _Gradients:
    outputs = vmap(lambda parameters, x: functional_call(skeleton, parameters, (x,)))

    def gradients(
        now: Mapping[str, Tensor], x: Tensor, y: Tensor, shares: Tensor
    ) -> Sequence[Tensor]:
        now = {name: value.requires_grad_() for name, value in now.items()}
        losses = loss.losses(outputs(now, x).flatten(0, 1), y.flatten(0, 1))
        # Clients do not interact: the gradient of the sum is everyone's gradient.
        return torch.autograd.grad(losses @ shares.flatten(), list(now.values()))

    return gradients


def _by_hand(model: nn.Module, loss: Any, values: Mapping[str, Tensor]) -> _Gradients | None:
    """The gradients of the cross-entropy of an affine model, as they are written down; None of
    others. Autograd makes three times the work of them: its products are laid out for vmap."""
    affine = affine_layer(model)
    if affine is None or type(loss) is not CrossEntropy or not is_ours(loss, CrossEntropy):
        return None
    prefix, layer = affine
    names = [f"{prefix}weight"] + [f"{prefix}bias"] * (layer.bias is not None)
    if list(values) != names:
        return None

    def gradients(
        now: Mapping[str, Tensor], x: Tensor, y: Tensor, shares: Tensor
    ) -> Sequence[Tensor]:
        x, (weight, *bias) = x.flatten(2), now.values()
        outputs = x @ weight.mT
        for one in bias:
            outputs += one[:, None]
        flat = outputs.flatten(0, 1)
        labels = checked_labels(y.flatten(0, 1), *flat.shape)
        pull = flat.softmax(dim=1)
        pull[torch.arange(len(flat), device=flat.device), labels] -= 1
        pull = (pull * shares.flatten()[:, None]).view_as(outputs)
        return [pull.mT.contiguous() @ x, *(pull.sum(dim=1) for _ in bias)]

    return gradients


class _Batches:
    """One mini-batch a client, made rectangular: inputs (C, B, ...), labels (C, B), the share of
    each sample (C, B)."""

    def __init__(
        self,
        clients: Sequence[Client],
        tasks: Sequence[Task],
        schedules: Sequence[Sequence[Int64]],
        width: int | None = None,
    ) -> None:
        x, y = clients[0].x, clients[0].y
        self.clients = clients
        self.generators = [task.generator("loss", x.device) for task in tasks]
        self.loss: Any = clients[0].trainer.loss  # type: ignore[attr-defined]
        shared = all(client.x is x and client.y is y for client in clients)
        as_it_is = type(self.loss) is CrossEntropy and self.loss.law is None
        self.gathered = shared and as_it_is  # one look-up serves all the clients
        self.lengths = [np.array([len(batch) for batch in schedule]) for schedule in schedules]
        self.width = width
        places = np.arange(width or max(lengths.max() for lengths in self.lengths))
        self.places = []
        for client, schedule, lengths in zip(clients, schedules, self.lengths, strict=True):
            # A short batch is filled up with its own first sample, which then weighs nothing.
            inside = places < lengths[:, None]
            firsts = (lengths.cumsum() - lengths)[:, None]
            drawn = np.concatenate(schedule)[firsts + places * inside]
            self.places.append(torch.from_numpy(client.where[drawn]).to(x.device))

    def __call__(self, step: int, active: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The batches of the first ``active`` clients in a step; the last again of who is done."""
        steps = [min(step, len(lengths) - 1) for lengths in self.lengths[:active]]
        lengths = np.array([own[at] for own, at in zip(self.lengths, steps, strict=False)])
        width = self.width or lengths.max()
        where = torch.stack([own[at, :width] for own, at in zip(self.places, steps, strict=False)])
        inside = np.arange(where.shape[1]) < lengths[:, None]
        shares = torch.from_numpy(inside / lengths[:, None]).to(where.device, dtype)
        if self.gathered:
            x, y = self.clients[0].x, self.clients[0].y
            # Twice as fast as x[where], which is what this is.
            return (
                x.index_select(0, where.flatten()).reshape(*where.shape, *x.shape[1:]),
                y[where],
                shares,
            )
        inputs, labels = [], []
        for i, length in enumerate(lengths):
            x = self.loss.inputs(self.clients[i].x[where[i, :length]], self.generators[i])
            inputs.append(x[[*range(length), *([0] * (where.shape[1] - length))]])
            labels.append(self.clients[i].y[where[i]])
        return torch.stack(inputs), torch.stack(labels), shares
