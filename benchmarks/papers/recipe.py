"""What the recipes share: options, official files, results that are computed once, and verdicts."""

import argparse
import gzip
import json
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["idx", "mnist", "once", "options", "verdict", "word"]

SCALES = ("smoke", "small", "paper")


def options(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The options of every recipe."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds mnist/ with the official idx files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--out", type=Path, default=Path("build") / name)
    return parser


def idx(path: Path) -> Tensor:
    """An idx file of bytes, or its ``.gz`` where there is only that: uint8 of the shape that its header names."""
    packed = path.with_name(path.name + ".gz")
    data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} must be an idx file of bytes, got one that begins with {data[:4]!r}")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4).tolist()
    if len(data) != 4 + 4 * rank + prod(shape):
        raise ValueError(f"{path} must hold {shape} bytes behind its header, got {len(data)} in all")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def mnist(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 28, 28) in [0, 1], float64, and their labels."""
    parts = []
    for part in ("train", "t10k"):
        parts.append(idx(data / "mnist" / f"{part}-images-idx3-ubyte")[:, None].double() / 255)
        parts.append(idx(data / "mnist" / f"{part}-labels-idx1-ubyte").long())
    return parts[0], parts[1], parts[2], parts[3]


def once(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The numbers in ``path``; computed and written whole if they are not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(compute(), indent=1))
        part.replace(path)  # a run that is killed leaves no half a file
    numbers: dict[str, Any] = json.loads(path.read_text())
    return numbers


def word(agrees: bool) -> str:
    """``agrees`` or ``differs``."""
    return "agrees" if agrees else "differs"


def verdict(values: Iterable[float], *, rising: bool) -> str:
    """``agrees`` if each value is strictly above (below) the one before it, else ``differs``."""
    steps = np.diff(list(values))
    return word(len(steps) > 0 and bool((steps > 0 if rising else steps < 0).all()))
