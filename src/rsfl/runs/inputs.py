"""The inputs of a data set, by index or one after the other."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rsfl._batches import indexable
from rsfl._checks import count
from rsfl.smooth import Inputs, structure

__all__ = ["Mapped", "example", "labelled", "owned", "peeked"]


class Mapped:
    """A data set whose items are made into pairs (x, y) when they are asked for: rows of a table,
    PIL images, texts, triples.

    Args:
        dataset: Gives items by index, and says how many there are.
        function: Makes the pair of one input and its label of an item.

    Example:
        >>> rows = [{"image": [[0.0, 1.0]], "label": 3, "who": "a"}]
        >>> data = Mapped(rows, lambda row: (torch.tensor(row["image"]), row["label"]))
        >>> len(data), data[0]
        (1, (tensor([[0., 1.]]), 3))
    """

    def __init__(self, dataset: Any, function: Callable[[Any], tuple[Any, Any]]) -> None:
        if not indexable(dataset):
            raise TypeError(
                f"dataset must give items by index and have a length, got {_kind(dataset)}"
            )
        if not callable(function):
            raise TypeError(f"function must make pairs (x, y) of items, got {function!r}")
        self.dataset, self.function = dataset, function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        return self.function(self.dataset[index])


def peeked(dataset: Any) -> tuple[Any, Any]:
    """The first item of a data set, and a data set that still has it; a pair of tensors (x, y) is
    one."""
    if isinstance(dataset, Mapping):
        raise TypeError(f"dataset must yield pairs (x, y), got {_kind(dataset)}")
    if (
        isinstance(dataset, tuple | list)
        and len(dataset) == 2
        and all(isinstance(part, Tensor) for part in dataset)
    ):
        x, y = dataset
        if x.ndim == 0 or y.shape != x.shape[:1]:
            raise ValueError(
                f"y must hold a label for each x, got shapes {tuple(y.shape)} and {tuple(x.shape)}"
            )
        dataset = TensorDataset(x, y)
    if indexable(dataset):
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one input, got 0")
        return dataset[0], dataset
    try:
        rest = iter(dataset)
    except TypeError:
        raise TypeError(f"dataset must yield pairs (x, y), got {dataset!r}") from None
    first = list(itertools.islice(rest, 1))
    if not first:
        raise ValueError("dataset must hold at least one input, got 0")
    return first[0], itertools.chain(first, rest)


def example(item: Any, model: nn.Module | None) -> tuple[Any, int]:
    """One input, as it is in the data set but on the model's device, and its label: a tensor, or
    of a structured model :class:`rsfl.smooth.Inputs`. It is a copy: a data set may write the next
    one into the same memory."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"dataset must yield pairs (x, y), got {_kind(item)}")
    x, y = item
    if np.ndim(y) > 0:
        raise TypeError(
            f"dataset must yield one input and its label at a time, got {len(y)} labels; "
            f"of a DataLoader, give its dataset"
        )
    if (parts := structure(model)) is not None:
        return x.clone() if isinstance(x, Inputs) else parts.single(x), count("y", y)
    if isinstance(x, Mapping) or type(x).__module__.partition(".")[0] == "PIL":
        raise TypeError(f"x must be a tensor, got {_input(x)}")
    x = torch.as_tensor(x)
    own = () if model is None else model.parameters()
    device = next((p.device for p in own), x.device)
    return x.to(device, copy=True), count("y", y)


def owned(item: Any) -> Any:
    """An item with tensors and arrays of its own."""
    if isinstance(item, Tensor):
        return item.clone()
    if isinstance(item, np.ndarray):
        return item.copy()
    if isinstance(item, Mapping):
        return {name: owned(part) for name, part in item.items()}
    return type(item)(map(owned, item)) if type(item) in (tuple, list) else item


def labelled(y: int, num_classes: int) -> None:
    """Raise ValueError where a label is none of the classes."""
    if y >= num_classes:
        raise ValueError(f"y must be a class in [0, {num_classes}), got {y}: labels count from 0")


def _kind(item: Any) -> str:
    """What something is that is no pair or no tensor, with the way to one where it is known."""
    if type(item).__module__.partition(".")[0] == "PIL":
        return (
            "a PIL image: torchvision.transforms.ToTensor() makes a tensor of it, and "
            "runs.Mapped(dataset, function) the pairs"
        )
    if isinstance(item, Mapping):
        return (
            f"a mapping of {sorted(map(str, item))}: give the pair of two of them, by "
            f"runs.Mapped(dataset, function)"
        )
    if isinstance(item, tuple | list):
        return (
            f"{len(item)} entries: give the two that are input and label, by "
            f"runs.Mapped(dataset, function)"
        )
    return type(item).__name__


def _input(x: Any) -> str:
    """What something is that is no tensor, where the model takes one."""
    if not isinstance(x, Mapping):
        return _kind(x)
    return (
        f"a mapping of {sorted(map(str, x))}: for a model of several inputs, say what carries "
        f"noise by smooth.Parts(model, 'name'), or smooth.At(model, 'name of a module')"
    )
