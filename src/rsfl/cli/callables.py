"""What options name: models and data of somebody else's modules, and where they compute."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["DTYPES", "calling", "made", "model_on_device"]

T = TypeVar("T")

DTYPES = ("float64", "float32", "bfloat16", "float16")


def _named(option: str, name: str) -> Any:
    """What ``pkg.mod:name`` names."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"--{option} must look like package.module:callable, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = calling(
        f"--{option} {name!r}: importing {module_name}",
        lambda: importlib.import_module(module_name),
    )
    if not hasattr(module, attribute):
        raise ValueError(f"--{option} {name!r}: module {module_name} has no {attribute}")
    return getattr(module, attribute)


def calling(what: str, function: Callable[[], T]) -> T:
    """The result of code that is not ours; its exception with a word on where it comes from."""
    try:
        return function()
    except Exception as error:
        raise RuntimeError(f"{what} raised {type(error).__name__}: {error}") from error


def made(option: str, name: str) -> Any:
    """What the callable that ``pkg.mod:callable`` names returns."""
    function = _named(option, name)
    if not callable(function):
        raise TypeError(f"--{option} {name!r} must be callable, got {type(function).__name__}")
    return calling(f"--{option} {name!r}", function)


def model_on_device(args: argparse.Namespace) -> nn.Module:
    """The model that the options name, in the dtype and on the device that they ask for.

    By default the GPU if there is one; each local rank has a GPU of its own.
    """
    model = _named("model", args.model)
    model = model if isinstance(model, nn.Module) else made("model", args.model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"--model {args.model!r} must give a torch.nn.Module, got {type(model).__name__}"
        )
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    local = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and local:
        device = torch.device("cuda", int(local))
    return model.to(device, getattr(torch, args.dtype) if args.dtype else None)
