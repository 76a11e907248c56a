"""Clients: who holds which samples, here or on another machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nextafter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rsfl._checks import Int64, count, counts, number
from rsfl.fed.layout import Layout
from rsfl.fed.trainer import SGD, Task, Trainer

__all__ = ["Client", "Member", "Remote", "clients"]


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
        x: Inputs, shape (N, ...): its own, or a data set that clients share. A plain tensor: a
            subclass could show every reader something else.
        y: Labels, shape (N,), a plain tensor.
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
        for name in ("x", "y"):
            if type(getattr(self, name)) is not Tensor:
                raise TypeError(
                    f"{name} must be a plain torch.Tensor, got {type(getattr(self, name)).__name__}"
                )
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
        if type(self.trainer) is not SGD:
            x, y = x.clone(), y.clone()  # the data set may be shared
            if task.poison is not None and not isinstance(self.trainer, SGD):
                x, y = task.poison(x, y)
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
            from here; behind frozen layers, of which it has copies of its own, it counts as none. A
            server's ``max_input_norm`` holds without it: the client is told.
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
    for k, part in enumerate(parts):
        if not len(part):
            raise ValueError(
                f"parts must hold at least one sample each, got none for client {first + k}: leave "
                f"it out and let the others keep their ids, [fed.Client({first} + k, x, y, "
                f"trainer, part) for k, part in enumerate(parts) if len(part)]"
            )
    return [Client(first + k, x, y, trainer, part) for k, part in enumerate(parts)]
