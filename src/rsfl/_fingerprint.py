"""What tells settings and tensors from others, the same in every process: names, numbers and bytes, no addresses."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["described", "tensor_bytes"]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Type, shape and content of a tensor, for a hash."""
    head = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
    return head + content.numpy().tobytes()


def described(value: Any) -> str:
    """A setting in words. Modules and functions count by their names: they are not looked into."""
    if isinstance(value, Tensor):
        return sha256(tensor_bytes(value)).hexdigest()
    if isinstance(value, nn.Module):
        return type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        settings = (f"{field.name}={described(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({', '.join(settings)})"
    if isinstance(value, partial):
        return f"partial({described(value.func)}, {described(value.args)}, {described(value.keywords)})"
    if isinstance(value, Mapping):
        return repr(sorted((described(key), described(one)) for key, one in value.items()))
    if isinstance(value, (set, frozenset)):
        return repr(sorted(map(described, value)))
    if isinstance(value, (list, tuple)):
        return repr(list(map(described, value)))
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else repr(value)
