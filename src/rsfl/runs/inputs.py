"""The inputs of a data set, by index or one after the other, as a model takes them."""

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
    """One input, in the type and on the device of the model's first parameter, and its label."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"dataset must yield pairs (x, y), got {type(item).__name__}")
    x, y = torch.as_tensor(item[0]), count("y", item[1])
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None:
        x = x.to(weight.device, weight.dtype if x.is_floating_point() else None)
    return x, y
