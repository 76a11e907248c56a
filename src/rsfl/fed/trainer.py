"""How a client trains in one round: what it is told, and plain mini-batch gradient steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from math import inf
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import _draws
from rsfl._checks import Int64, count, number, stored
from rsfl._heads import linear_head
from rsfl.fed.faults import theirs, told
from rsfl.fed.layout import Layout
from rsfl.train import CrossEntropy, Loss

__all__ = [
    "SGD",
    "Poison",
    "Schedule",
    "Stackable",
    "Task",
    "Trainer",
    "at_round",
    "mixes",
    "squared_norms",
    "usable",
]

_LOG = getLogger(__name__)

Schedule: TypeAlias = float | Callable[[int], float]
"""A number, or a function of the round, which counts from 1."""

Poison: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What a simulated attacker does to each mini-batch before it trains on it."""


def at_round(name: str, schedule: Schedule, index: int) -> float:
    """The value of a schedule in a round: positive and finite."""
    value = schedule(index) if callable(schedule) else schedule
    return number(name, value, 0.0, inf, open_low=True, open_high=True)


def _decay(value: Any) -> float:
    return number("decay", value, 0.0, inf, open_high=True)


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
        lr: Step size of this round, which the server has asked the schedule for and writes down;
            None where nobody has: `SGD` then asks its own.
        max_input_norm: Norm of (x, 1) above which a sample is unusable; of (z, 1), where frozen
            layers make z of x for a linear head.
    """

    round: int
    client: int
    seed: int
    center: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    poison: Poison | None = None
    lr: float | None = None
    max_input_norm: float = inf

    def rng(self, purpose: str) -> np.random.Generator:
        """A NumPy generator for (seed, round, client, purpose) alone."""
        return _draws.rng(self.seed, self.round, self.client, purpose)

    def rate(self, schedule: Schedule) -> float:
        """The step size of the round: what the server told, or else what the schedule says."""
        return at_round("lr", schedule, self.round) if self.lr is None else self.lr

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

    A sample that cannot be trained on counts as zero and keeps its share of the batch, as an update
    that cannot be used does at the server: nobody's training fails from it. With the softmax
    cross-entropy of an affine model that is one whose label is none of the model's classes, whose
    input is not finite, or longer than the server's ``max_input_norm``.

    Args:
        lr: Step size, or a function of the round. In a run the server asks it once a round.
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
        # Plain numbers from here on: an object that answers differently each time is asked once.
        if not callable(self.lr):
            stored(self, lr=at_round("lr", self.lr, 1))
        stored(self, epochs=count("epochs", self.epochs, 1))
        for name in ("batch_size", "steps"):
            if getattr(self, name) is not None:
                stored(self, **{name: count(name, getattr(self, name), 1)})
        stored(self, momentum=number("momentum", self.momentum, 0.0, 1.0, open_high=True))
        decay: Any = self.decay
        if isinstance(decay, Mapping):
            decay = {str(name): _decay(value) for name, value in dict(decay).items()}
        else:
            decay = _decay(decay)
        stored(self, decay=decay)
        if self.mixture is not None:
            stored(self, mixture=number("mixture", self.mixture, 0.0, 1.0))
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
        decays, lr = self.decays(layout), task.rate(self.lr)
        generator = task.generator("loss", x.device)
        head = linear_head(model) if type(self.loss) is CrossEntropy else None
        for batch in self.batches(len(x), task):
            where = torch.from_numpy(batch).to(x.device)
            inputs, targets = x[where], y[where]
            if task.poison is not None:
                inputs, targets = _poisoned(task, inputs, targets)
            share = 1.0
            if head is not None:
                squares, labels = squared_norms(head.features(inputs)), head.layer.out_features
                kept = usable(squares, targets, labels, task.max_input_norm)
                share = float(kept.double().mean())
                if share < 1:
                    inputs, targets = inputs[kept], targets[kept]
            if share:
                loss = self.loss(model, inputs, targets, generator)
                gradients = torch.autograd.grad(loss * share if share < 1 else loss, values)
            else:
                gradients = tuple(torch.zeros_like(value) for value in values)
            with torch.no_grad():
                self.descend(values, gradients, velocities, decays, centers, lr)


def squared_norms(x: Tensor) -> Tensor:
    """|| x ||^2 of each input of (N, ...), in float64."""
    return x.flatten(1).double().square().sum(dim=1)


def usable(squares: Tensor, y: Tensor, labels: int, longest: float = inf) -> Tensor:
    """Which samples can be trained on: a label from 0 to ``labels`` - 1, and a norm of (x, 1) that
    is finite and at most ``longest``."""
    good = squares + 1 <= min(longest, 1e154) ** 2
    return good & (y >= 0) & (y < labels) if y.ndim == 1 else good


def _poisoned(task: Task, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A mini-batch as a simulated attacker makes it. What it fails to do is not done: its training
    goes on with the batch as it was."""
    try:
        inputs, labels = task.poison(x.clone(), y.clone())  # type: ignore[misc]
        for new, old in ((inputs, x), (labels, y)):
            if type(new) is not Tensor or (new.shape, new.dtype) != (old.shape, old.dtype):
                raise TypeError(f"it must give a plain tensor like {old.dtype} {tuple(old.shape)}")
        return inputs.detach().clone(), labels.detach().clone()
    except BaseException as error:
        if not theirs(error):
            raise
        _LOG.warning("client %d could not poison a mini-batch: %s", task.client, told(error))
        return x, y


def mixes(trainer: Trainer) -> bool:
    """Whether a client that trains so keeps a model of its own from round to round."""
    return isinstance(trainer, SGD) and trainer.mixture is not None
