"""Clients that train as one: their models in one stack, their batches in one tensor."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rsfl._checks import Int64
from rsfl.attacks import checked_labels
from rsfl.fed.client import Client
from rsfl.fed.layout import Layout
from rsfl.fed.ours import is_ours, of_torch_alone, plain_process
from rsfl.fed.trainer import SGD, Task
from rsfl.train import CrossEntropy

__all__ = ["fit_stacked"]


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

    gradients = _by_hand(model, pointwise, values) or _by_autograd(model, pointwise)
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


def _by_autograd(model: nn.Module, loss: Any) -> _Gradients:
    skeleton = deepcopy(model).train().requires_grad_(False)
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
    """The gradients of the cross-entropy of linear layers with ReLUs between them, as they are
    written down; None of others. Autograd makes several times the work of them: its products are
    laid out for vmap."""
    flat, layers = _linear_layers(model)
    if not layers or type(loss) is not CrossEntropy or not is_ours(loss, CrossEntropy):
        return None
    if list(values) != [name for layer in layers for name in layer.names]:
        return None

    def gradients(
        now: Mapping[str, Tensor], x: Tensor, y: Tensor, shares: Tensor
    ) -> Sequence[Tensor]:
        # Samples are the last axis, (C, features, B): along it softmax and sums are fastest.
        outputs, given = (x.flatten(2) if flat else x).mT, []
        if outputs.ndim != 3:
            raise ValueError(f"x must be one row of numbers a sample, got shape {tuple(x.shape)}")
        for layer in layers:
            given.append(outputs)
            weight, *bias = (now[name] for name in layer.names)
            outputs = (
                torch.baddbmm(bias[0][..., None], weight, outputs) if bias else weight @ outputs
            )
            outputs = outputs.relu_() if layer.bends else outputs
        clients, classes, samples = outputs.shape
        labels = checked_labels(y.flatten(0, 1), clients * samples, classes)
        labels = labels.view(clients, 1, samples)
        pull = outputs.softmax(dim=1)
        pull.scatter_add_(1, labels, pull.new_tensor(-1).expand(labels.shape))
        pull *= shares[:, None]
        found: list[Tensor] = []
        for number in reversed(range(len(layers))):
            names, inputs = layers[number].names, given[number]
            found = [pull @ inputs.mT, pull.sum(dim=2)][: len(names)] + found
            if number:
                pull = now[names[0]].mT @ pull
                pull = pull.masked_fill_(inputs <= 0, 0) if layers[number - 1].bends else pull
        return found

    return gradients


@dataclass(frozen=True)
class _Layer:
    """A linear layer: the names of its weight and, if it has one, of its bias; and whether a ReLU
    follows."""

    names: tuple[str, ...]
    bends: bool = False


def _linear_layers(model: nn.Module) -> tuple[bool, list[_Layer]]:
    """Whether inputs are flattened, and the layers of a network that has only linear ones and ReLUs
    between them; no layers of others."""
    flat, layers, others = False, list[_Layer](), (False, list[_Layer]())
    if not (of_torch_alone(model) and plain_process()):
        return others
    for name, module in model.named_modules(remove_duplicate=False):  # twice there, twice called
        kind = type(module)
        if "forward" in vars(module) or (module._modules and kind is not nn.Sequential):
            return others
        if kind is nn.Linear:
            own = ("weight",) if module.bias is None else ("weight", "bias")
            if tuple(one for one, _ in module.named_parameters()) != own:
                return others
            prefix = f"{name}." if name else ""
            layers.append(_Layer(tuple(prefix + one for one in own)))
        elif kind is nn.ReLU and layers:
            if module.inplace and layers[-1].bends:  # autograd refuses a second one in place
                return others
            layers[-1] = replace(layers[-1], bends=True)
        elif kind is nn.Flatten and not layers and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif kind not in (nn.Sequential, nn.Identity):
            return others
    return others if layers and layers[-1].bends else (flat, layers)


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
        self.loss: Any = clients[0].trainer.loss  # type: ignore[attr-defined]
        shared = all(client.x is x and client.y is y for client in clients)
        as_it_is = type(self.loss) is CrossEntropy and self.loss.law is None
        self.gathered = shared and as_it_is  # one look-up serves all the clients
        drawing = () if self.gathered else tasks
        self.generators = [task.generator("loss", x.device) for task in drawing]
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
