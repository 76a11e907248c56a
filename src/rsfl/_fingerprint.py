"""What tells settings, tensors and models from others, the same in every process: names, numbers
and bytes."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["described"]


def described(value: Any) -> str:
    """A text that is the same for equal settings, and differs where tensors, numbers, texts or
    containers of them do.

    Modules and functions count by their names, other objects by their types: they are not looked
    into.
    """
    if isinstance(value, Tensor):
        content = (
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        )  # NumPy has no bfloat16
        return f"{value.dtype} {tuple(value.shape)} {sha256(content.numpy().tobytes()).hexdigest()}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} {sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        settings = (
            f"{field.name}={described(getattr(value, field.name))}" for field in fields(value)
        )
        return f"{type(value).__name__}({', '.join(settings)})"
    if isinstance(value, partial):
        bound = (value.func, value.args, value.keywords)
        return f"partial({', '.join(map(described, bound))})"
    if isinstance(value, Mapping):
        return repr(sorted((described(key), described(one)) for key, one in value.items()))
    if isinstance(value, (set, frozenset)):
        return repr(sorted(map(described, value)))
    if isinstance(value, (list, tuple)):
        return repr(list(map(described, value)))
    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, np.generic, torch.dtype)
    ):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
