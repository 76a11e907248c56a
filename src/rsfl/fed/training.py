"""One round of local training for many clients: stacked where that gives the same result, one by
one elsewhere."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf
from threading import Thread
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rsfl import _draws
from rsfl.fed.client import Client, Member
from rsfl.fed.faults import theirs, told
from rsfl.fed.layout import Layout
from rsfl.fed.ours import is_ours
from rsfl.fed.stacked import fit_stacked
from rsfl.fed.trainer import SGD, Stackable, Task
from rsfl.train import CrossEntropy

__all__ = ["STACK", "Failure", "fit_alone", "kind", "stackable", "train"]

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
