"""The inputs of a data set, by index or one after the other."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import count
from rsfl.train.batches import indexable

__all__ = ["example", "peeked"]


def peeked(dataset: Any) -> tuple[Any, Any]:
    """The first item of a data set, and a data set that still has it."""
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


def example(item: Any, model: nn.Module) -> tuple[Tensor, int]:
    """One input, as it is in the data set but on the model's device, and its label."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"dataset must yield pairs (x, y), got {type(item).__name__}")
    x, y = torch.as_tensor(item[0]), count("y", item[1])
    device = next((p.device for p in model.parameters()), x.device)
    return x.to(device), y
