"""What a batch of inputs has to be before a certificate for it would mean something, and where it
comes from."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rsfl._checks import counts

__all__ = ["batch", "checked_batch", "checked_index", "indexable", "rows_of"]


def batch(x: Tensor) -> Tensor:
    """``x``, detached, if it is a batch (B, ...) of at least one input, of whichever numbers.

    Raises:
        ValueError: It holds no number.
        TypeError: It is no dense tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {_kind(x)}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, got one of layout {x.layout}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x must be a batch (B, ...) of at least one input, got shape {tuple(x.shape)}"
        )
    return x.detach()


def _kind(x: object) -> str:
    """What something is that is no tensor, with the way to one where it is known."""
    kind = type(x)
    if kind.__module__.partition(".")[0] == "PIL":
        return (
            "a PIL image: torchvision.transforms.functional.to_tensor(image)[None] is a batch of it"
        )
    if isinstance(x, np.ndarray):
        return "a NumPy array: torch.from_numpy(x) is a tensor of it"
    if isinstance(x, Mapping):
        return (
            f"a mapping of {sorted(map(str, x))}: for a model of several inputs, say what carries "
            f"noise by smooth.Parts(model, 'name'), or smooth.At(model, 'name of a module')"
        )
    if isinstance(x, (tuple, list)):
        return (
            f"a {kind.__name__} of {len(x)}: of a batch (x, y) give x; torch.stack makes a batch "
            f"of single inputs; for a model of several inputs wrap it in smooth.Parts"
        )
    if isinstance(x, (DataLoader, Dataset)):
        return (
            f"a {kind.__name__}: runs.certify takes a data set, certify one batch x of it at a "
            f"time, with index=..."
        )
    return kind.__name__


def indexable(dataset: Any) -> bool:
    """Whether a data set gives its items by index, and says how many there are."""
    return (
        hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and not isinstance(dataset, (IterableDataset, Mapping))
    )


def checked_batch(x: Tensor) -> Tensor:
    """``x``, detached, if it is a batch (B, ...) of finite inputs.

    Raises:
        ValueError: It holds no number, or an infinity or NaN.
        TypeError: It is no dense tensor of floating point numbers.
    """
    if isinstance(x, Tensor) and not x.is_floating_point():
        way = (
            "bytes of pixels are x / 255"
            if x.dtype == torch.uint8
            else "numbers that name things, such as tokens, carry no noise, and smooth.At(model, "
            "'name of a module') adds it to what a module makes of them"
        )
        raise TypeError(f"x must have a floating point dtype, got {x.dtype}: {way}")
    x = batch(x)
    finite = x.isfinite()
    if not bool(finite.all()):
        where = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"x must be finite, got {x[where].item()!r} at index {where}")
    return x


def checked_index(index: Tensor | Sequence[int] | None, rows: int) -> Tensor:
    """Which inputs a batch holds, (rows,) int64 on the CPU; 0 ... rows - 1 if that is not said.

    Raises:
        ValueError: It is not one whole number of at least 0 for each input.
        TypeError: It holds something else than numbers.
    """
    if index is None:
        return torch.arange(rows)
    numbers = counts("index", index.cpu() if isinstance(index, Tensor) else index)
    if numbers.shape != (rows,):
        raise ValueError(
            f"index must hold {rows} whole numbers, one for each input, got {numbers.tolist()}"
        )
    return torch.from_numpy(numbers)


def rows_of(
    key: SupportsIndex | slice | Tensor | Sequence[int], size: int, device: torch.device
) -> slice | Tensor:
    """Some of ``size`` rows as tensors take them; a single number makes a batch of one.

    Raises:
        IndexError: There is no such row.
    """
    if isinstance(key, slice):
        return key
    rows = torch.as_tensor(key, device=device)
    if rows.ndim:
        return rows
    place = operator.index(rows)
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of range for {size} inputs")
    return rows[None]
