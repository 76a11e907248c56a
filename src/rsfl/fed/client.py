"""Clients and how they train: who holds which samples, and what happens to a model in one round on
them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nextafter
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rsfl import _draws
from rsfl._checks import Int64, count, counts, number
from rsfl.fed.layout import Layout
from rsfl.train import CrossEntropy, Loss

__all__ = [
    "SGD",
    "Client",
    "Member",
    "Poison",
    "Remote",
    "Schedule",
    "Stackable",
    "Task",
    "Trainer",
    "at_round",
    "clients",
]

Schedule: TypeAlias = float | Callable[[int], float]
"""A number, or a function of the round, which counts from 1."""

Poison: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What a simulated attacker does to each mini-batch before it trains on it."""


def at_round(name: str, schedule: Schedule, index: int) -> float:
    """The value of a schedule in a round: positive and finite."""
    value = schedule(index) if callable(schedule) else schedule
    return number(name, value, 0.0, inf, open_low=True, open_high=True)


@runtime_checkable
class Stackable(Protocol):
    """A loss in two parts, which lets many clients train as one: draws first, then a pure function
    of the outputs."""

    def inputs(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the model is shown instead of ``x`` (N, ...)."""
        ...

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample, shape (N,)."""
        ...


@dataclass(frozen=True)
class Task:
    """What the server tells a client in one round, besides the model to start from.

    Args:
        round: Number of the round, from 1.
        client: Id of the client.
        seed: Seed of the run.
        center: The broadcast model, by name: what a mixture is pulled towards.
        poison: What the client does to its mini-batches if it is a simulated attacker.
    """

    round: int
    client: int
    seed: int
    center: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    poison: Poison | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """A NumPy generator for (seed, round, client, purpose) alone."""
        return _draws.rng(self.seed, self.round, self.client, purpose)

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator for (seed, round, client, purpose) alone."""
        return _draws.generator(self.seed, self.round, self.client, purpose, device=device)


Trainer: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Task], None]
"""``trainer(model, x, y, task)`` trains the model in place on a client's own samples."""


@dataclass(frozen=True)
class SGD:
    r"""Local training by mini-batch gradient steps.

    One step is ``w <- w - lr * (gradient + decay * w)``, or with momentum what ``torch.optim.SGD``
    does; momentum starts afresh in every round. An epoch is a fresh shuffle cut into batches, the
    last one as short as it comes. With ``mixture`` the client keeps a model of its own from round
    to round and descends a mixture of the local loss and of the distance to the average model,

    .. math:: w_i \leftarrow w_i - lr\,(\lambda \nabla L_i(w_i) + 2 (1 - \lambda) (w_i - \bar w)).

    Args:
        lr: Step size, or a function of the round.
        batch_size: Samples a batch; None for all of them at once, in their own order.
        epochs: Passes over the client's samples in a round.
        steps: Number of batches in a round instead; as many passes are begun as that takes.
        momentum: In [0, 1).
        decay: L2 decay, for all parameters or by name (0 for those not named).
        mixture: The lambda of the mixture, in [0, 1]; None for ordinary federated training from the
            broadcast.
        loss: ``loss(model, x, y, generator)``, a scalar.

    References:
        Alfarra, Perez, Shulgin, Richtarik and Ghanem, Certified robustness in federated learning,
        2022, Eq. 5.
    """

    lr: Schedule = 0.1
    batch_size: int | None = 32
    epochs: int = 1
    steps: int | None = None
    momentum: float = 0.0
    decay: float | Mapping[str, float] = 0.0
    mixture: float | None = None
    loss: Loss = field(default_factory=CrossEntropy)

    def __post_init__(self) -> None:
        if not callable(self.lr):
            at_round("lr", self.lr, 1)
        count("epochs", self.epochs, 1)
        for name in ("batch_size", "steps"):
            if getattr(self, name) is not None:
                count(name, getattr(self, name), 1)
        number("momentum", self.momentum, 0.0, 1.0, open_high=True)
        for value in self.decay.values() if isinstance(self.decay, Mapping) else (self.decay,):
            number("decay", value, 0.0, inf, open_high=True)
        if self.mixture is not None:
            number("mixture", self.mixture, 0.0, 1.0)
        if not callable(self.loss):
            raise TypeError(
                f"loss must be a function of (model, x, y, generator), got {self.loss!r}"
            )

    def decays(self, layout: Layout) -> list[float]:
        """The decay of each trained parameter, in order."""
        names = list(layout.shapes)[: layout.parameters]
        if not isinstance(self.decay, Mapping):
            return [float(self.decay)] * len(names)
        if unknown := set(self.decay) - set(names):
            raise ValueError(f"decay must name trained parameters, got {sorted(unknown)!r}")
        return [float(self.decay.get(name, 0.0)) for name in names]

    def batches(self, size: int, task: Task) -> list[Int64]:
        """The positions (among the client's ``size`` samples) of each mini-batch of a round, in
        order."""
        if self.batch_size is None:
            return [np.arange(size)] * (self.steps or self.epochs)
        lengths = self.batch_sizes(size)
        draw, epochs = task.rng("batches"), -(-sum(lengths) // size)
        return np.split(
            np.concatenate([draw.permutation(size) for _ in range(epochs)]), np.cumsum(lengths)
        )[:-1]

    def batch_sizes(self, size: int) -> tuple[int, ...]:
        """How many samples each mini-batch of a round has, in order."""
        if self.batch_size is None:
            return (size,) * (self.steps or self.epochs)
        full, rest = divmod(size, self.batch_size)
        epoch = (self.batch_size,) * full + (rest,) * (rest > 0)
        wanted = self.steps or self.epochs * len(epoch)
        return (epoch * -(-wanted // len(epoch)))[:wanted]

    def descend(
        self,
        values: Sequence[Tensor],
        gradients: Sequence[Tensor],
        velocities: Sequence[Tensor],
        decays: Sequence[float],
        centers: Sequence[Tensor],
        lr: float,
    ) -> None:
        """One step in place, on one client's tensors or on those of many, stacked."""
        for value, gradient, velocity, decay, center in zip(
            values, gradients, velocities, decays, centers, strict=True
        ):
            if self.mixture is not None and self.mixture < 1:
                gradient = self.mixture * gradient + 2 * (1 - self.mixture) * (value - center)
            if decay:
                gradient = gradient.add(value, alpha=decay)
            if self.momentum:
                gradient = velocity.mul_(self.momentum).add_(gradient)
            value.sub_(gradient, alpha=lr)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, task: Task) -> None:
        """Train ``model`` in place on one client's samples."""
        layout = Layout.of(model)
        values = [p for p in model.parameters() if p.requires_grad]
        centers = [
            task.center.get(name, value) for name, value in zip(layout.shapes, values, strict=False)
        ]
        velocities: Sequence[Tensor] = (
            [torch.zeros_like(value) for value in values] if self.momentum else values
        )
        decays, lr = self.decays(layout), at_round("lr", self.lr, task.round)
        generator = task.generator("loss", x.device)
        for batch in self.batches(len(x), task):
            where = torch.from_numpy(batch).to(x.device)
            inputs, labels = x[where], y[where]
            if task.poison is not None:
                inputs, labels = task.poison(inputs, labels)
            gradients = torch.autograd.grad(self.loss(model, inputs, labels, generator), values)
            with torch.no_grad():
                self.descend(values, gradients, velocities, decays, centers, lr)


class Member(Protocol):
    """What the server asks of anything that takes part; `Client` is the one that trains on tensors
    in this process."""

    @property
    def id(self) -> int:
        """A whole number, different for every participant."""
        ...

    @property
    def size(self) -> int:
        """Number of its samples, for the server's registry."""
        ...

    @property
    def trainer(self) -> Trainer:
        """How it is told to train."""
        ...

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Tensor]:
        """Train ``model``, a copy of its own, and send back its exchanged tensors by name."""
        ...


@dataclass(frozen=True, eq=False)
class Client:
    """One client: samples, and how it trains on them.

    Args:
        id: A whole number, different for every client.
        x: Inputs, shape (N, ...): its own, or a data set that clients share.
        y: Labels, shape (N,).
        trainer: `SGD`, or any function ``trainer(model, x, y, task)`` that trains the model in
            place.
        indices: Which samples are its own; None for all of them.
    """

    id: int
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    trainer: Trainer = field(default_factory=SGD)
    indices: ArrayLike | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", count("id", self.id))
        if len(self.x) != len(self.y):
            raise ValueError(
                f"y must be one label a sample, got {len(self.y)} for {len(self.x)} samples"
            )
        if not callable(self.trainer):
            raise TypeError(
                f"trainer must be a function of (model, x, y, task), got {self.trainer!r}"
            )
        where = np.arange(len(self.x)) if self.indices is None else counts("indices", self.indices)
        if where.ndim != 1 or not where.size or where.max() >= len(self.x):
            raise ValueError(
                f"indices must point to at least one of the {len(self.x)} samples, got "
                f"{self.indices!r}"
            )
        object.__setattr__(self, "indices", where)

    @property
    def where(self) -> Int64:
        """The positions of its samples in ``x`` and ``y``."""
        return np.asarray(self.indices)

    @property
    def size(self) -> int:
        """Number of its samples."""
        return len(self.where)

    @property
    def input_norm(self) -> float:
        """Bound on ||(x, 1)|| over its samples, read anew each time; inf where there is none."""
        blocks = torch.split(self.samples()[0].flatten(1), 4096)
        largest = torch.stack([block.double().square().sum(dim=1).max() for block in blocks]).max()
        # Rounding of the sum and of the root: far less than the widening.
        bound = nextafter(float((largest + 1).sqrt()) * (1 + 1e-12), inf)
        return inf if isnan(bound) else bound

    def samples(self) -> tuple[Tensor, Tensor]:
        """Its own samples and labels."""
        if self.size == len(self.x) and bool((self.where == np.arange(self.size)).all()):
            return self.x, self.y
        where = torch.from_numpy(self.where).to(self.x.device)
        return self.x[where], self.y[where]

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Tensor]:
        """Train ``model`` on the client's samples and send back its exchanged tensors."""
        x, y = self.samples()
        if task.poison is not None and not isinstance(self.trainer, SGD):
            x, y = task.poison(x.clone(), y.clone())  # the data set may be shared
        layout = Layout.of(model)
        self.trainer(model, x, y, task)
        return layout.split(layout.read(model))


@dataclass(frozen=True)
class Remote:
    """What a server knows of a client that trains on another machine; its samples count from 0.

    Args:
        id: A whole number, different for every client.
        size: Number of its samples.
        trainer: How it is told to train.
        input_norm: Bound on ||(x, 1)|| over its samples, inf if there is none. Nobody can check it
            from here.
    """

    id: int
    size: int
    trainer: Trainer = field(default_factory=SGD)
    input_norm: float = inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", count("id", self.id))
        object.__setattr__(self, "size", count("size", self.size, 1))
        object.__setattr__(
            self, "input_norm", number("input_norm", self.input_norm, 0.0, open_low=True)
        )

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Tensor]:
        """Fail: its samples are elsewhere."""
        raise RuntimeError(
            f"client {self.id} trains on another machine: carry the run out by rsfl.fed.flower"
        )


def clients(
    x: Tensor, y: Tensor, parts: Sequence[Int64], trainer: Trainer | None = None, *, first: int = 0
) -> list[Client]:
    """One client a part of a shared data set, numbered from ``first``.

    Args:
        x: Inputs, shape (N, ...).
        y: Labels, shape (N,).
        parts: Samples of each client, as the functions of `rsfl.fed.partition` return them.
        trainer: How all of them train; plain `SGD` if None.
        first: Id of the first client.
    """
    trainer = SGD() if trainer is None else trainer
    return [Client(first + k, x, y, trainer, part) for k, part in enumerate(parts)]
