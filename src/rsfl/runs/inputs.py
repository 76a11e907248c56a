"""The inputs of a data set, by index or one after the other."""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rsfl._checks import count
from rsfl.train.batches import indexable

__all__ = ["example", "peeked"]


def peeked(dataset: Any) -> tuple[Any, Any]:
    """The first item of a data set, and a data set that still has it; a pair of tensors (x, y) is
    one."""
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


def example(item: Any, model: nn.Module) -> tuple[Tensor, int]:
    """One input, as it is in the data set but on the model's device, and its label."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"dataset must yield pairs (x, y), got {type(item).__name__}")
    if np.ndim(item[1]) > 0:
        raise TypeError(
            f"dataset must yield one input and its label at a time, got {len(item[1])} labels; "
            f"of a DataLoader, "
            "give its dataset"
        )
    x, y = torch.as_tensor(item[0]), count("y", item[1])
    device = next((p.device for p in model.parameters()), x.device)
    return x.to(device), y
