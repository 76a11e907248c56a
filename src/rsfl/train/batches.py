"""Mini-batches by the number of their epoch, so that a run that is resumed sees what it would have
seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsfl._batches import indexable
from rsfl._checks import count
from rsfl._draws import generator

__all__ = ["GLOBAL", "LOSS", "ORDER", "Batches", "DatasetBatches", "Source"]

ORDER, LOSS, GLOBAL = range(3)
"""What the draws of an epoch are for: no two of these share a key."""


class Source(Protocol):
    """Where mini-batches come from: any object that gives an epoch's batches, the same ones
    whenever it is asked."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches (x, y) of an epoch, which counts from 1."""
        ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Mini-batches of tensors, shuffled anew in each epoch; the order depends on the seed and the
    epoch alone.

    Args:
        x: Inputs (N, ...).
        y: Labels (N,).
        size: Inputs a batch; the last one of an epoch is as short as it comes.
        seed: Seed of the order.

    Example:
        >>> batches = Batches(torch.arange(5.0)[:, None], torch.arange(5), size=2)
        >>> [len(x) for x, _ in batches(1)]
        [2, 2, 1]
    """

    x: Tensor
    y: Tensor
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        count("size", self.size, 1)
        if len(self.x) != len(self.y) or len(self.x) == 0:
            raise ValueError(
                f"x and y must be equally many, at least 1, got {len(self.x)} and {len(self.y)}"
            )

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, which counts from 1."""
        order = torch.randperm(len(self.x), generator=generator(self.seed, epoch, ORDER)).to(
            self.x.device
        )
        for part in torch.split(order, self.size):
            yield self.x[part], self.y[part]


@dataclass(frozen=True, eq=False)
class DatasetBatches:
    """Mini-batches of a map-style data set, in the order that :class:`Batches` gives to tensors.

    They come through a ``DataLoader`` made anew for each epoch, in an order that depends on the
    seed and the epoch alone. So do the draws of items that take theirs from PyTorch's global state:
    worker processes are seeded for the epoch, and without any :func:`fit` seeds the state.

    Args:
        dataset: Gives pairs (x, y) by index 0 ... len(dataset) - 1.
        size: Items a batch; the last one of an epoch is as short as it comes.
        seed: Seed of the order.
        workers: Processes that load items; 0 loads them in this one. Random items differ with their
            number.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.arange(5.0)[:, None], torch.arange(5))
        >>> batches = DatasetBatches(dataset, size=2)
        >>> [len(x) for x, _ in batches(1)]
        [2, 2, 1]
    """

    dataset: Dataset[Any]
    size: int = 128
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        count("size", self.size, 1)
        count("workers", self.workers)
        if not indexable(self.dataset):
            raise TypeError(f"dataset must have a length and items by index, got {self.dataset!r}")
        if self._items() == 0:
            raise ValueError("dataset must hold at least one item, got 0")

    def _items(self) -> int:
        # PyTorch's own class does not declare it.
        return len(self.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return -(-self._items() // self.size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, which counts from 1."""
        draws = generator(self.seed, epoch, ORDER)
        order = torch.randperm(self._items(), generator=draws).tolist()
        return iter(
            DataLoader(
                self.dataset, self.size, sampler=order, num_workers=self.workers, generator=draws
            )
        )
