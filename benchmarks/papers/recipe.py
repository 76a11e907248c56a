"""What the recipes share: options, official data files, results that are computed once, differences
between them, verdicts, and their report."""

import argparse
import gzip
import json
import lzma
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

import rsfl
from benchmarks.machine import machine
from rsfl.train import Batches

__all__ = [
    "Moved",
    "chosen",
    "cifar10",
    "difference",
    "idx",
    "key",
    "mnist",
    "monotone",
    "once",
    "options",
    "report",
    "sure",
    "verdict",
    "word",
]

SCALES = ("smoke", "small", "paper")


def options(doc: str | None, name: str, scales: Iterable[str] = SCALES) -> argparse.ArgumentParser:
    """The options of every recipe."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="the official files, as benchmarks/README.md says",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", choices=list(scales), default="smoke")
    parser.add_argument("--out", type=Path, default=Path("build") / name)
    return parser


def chosen(
    parser: argparse.ArgumentParser, asked: Sequence[str] | None, there: Iterable[str]
) -> list[str]:
    """The figures that were asked for, all that are there if none was; those that are not are an
    error."""
    known = list(there)
    wanted = known if asked is None else list(asked)
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"unknown figures {unknown} at this scale, there are {known}")
    return wanted


def idx(path: Path) -> Tensor:
    """An idx file of bytes, or its ``.gz`` or ``.xz`` where there is only that: uint8 of the shape
    in its header."""
    readers: dict[str, Callable[[Path], bytes]] = {
        "": Path.read_bytes,
        ".gz": lambda packed: gzip.decompress(packed.read_bytes()),
        ".xz": lambda packed: lzma.decompress(packed.read_bytes()),
    }
    found = [(path.with_name(path.name + end), read) for end, read in readers.items()]
    there = [(file, read) for file, read in found if file.exists()]
    if not there:
        raise FileNotFoundError(f"{path} must be there, or the same with .gz or .xz")
    file, read = there[0]
    data = read(file)
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(
            f"{file} must be an idx file of bytes, got one that begins with {data[:4]!r}"
        )
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4).tolist()
    if len(data) != 4 + 4 * rank + prod(shape):
        raise ValueError(
            f"{file} must hold {shape} bytes behind its header, got {len(data)} in all"
        )
    return torch.from_numpy(
        np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    )


def mnist(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 28, 28) in [0, 1], float64, and their labels."""
    parts = []
    for part in ("train", "t10k"):
        parts.append(idx(data / "mnist" / f"{part}-images-idx3-ubyte")[:, None].double() / 255)
        parts.append(idx(data / "mnist" / f"{part}-labels-idx1-ubyte").long())
    return parts[0], parts[1], parts[2], parts[3]


class _Arrays(pickle.Unpickler):
    """Unpickles what the CIFAR files hold, arrays of bytes, and runs nothing else."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a CIFAR-10 file must hold arrays alone, got {module}.{name}")


def cifar10(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 3, 32, 32) in [0, 1], float32, and their labels, from
    cifar-10-batches-py."""

    def read(name: str) -> tuple[Tensor, Tensor]:
        with open(data / "cifar-10-batches-py" / name, "rb") as file:
            content = _Arrays(file, encoding="bytes").load()
        images = torch.from_numpy(content[b"data"].copy()).view(-1, 3, 32, 32).float() / 255
        return images, torch.tensor(content[b"labels"])

    train = [read(f"data_batch_{number}") for number in range(1, 6)]
    x, y = (torch.cat(parts) for parts in zip(*train, strict=True))
    return x, y, *read("test_batch")


@dataclass(frozen=True)
class Moved:
    """Batches whose images are mirrored or not and shifted by up to 4 pixels, black coming in from
    the edge."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = np.random.default_rng((self.batches.seed, epoch))
        for x, y in self.batches(epoch):
            size = x.shape[-1]
            rows, columns = (draws.integers(0, 9, (len(x), 1)) + np.arange(size) for _ in range(2))
            columns = np.where(draws.random((len(x), 1)) < 0.5, columns, columns[:, ::-1])
            index = np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]
            padded = functional.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
            moved = padded[tuple(torch.from_numpy(part).to(x.device) for part in index)]
            yield moved.permute(0, 3, 1, 2).contiguous(), y


def key(settings: Mapping[str, Any]) -> str:
    """A name for a file that depends on these settings and on nothing else."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def once(folder: Path, settings: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The numbers that ``compute`` gives for these settings; computed only if ``folder`` has none
    for the same ones.

    Code is no setting: after a change to what is computed, start with an empty folder.

    Args:
        folder: Where each set of numbers is a file of its own, next to its settings.
        settings: A dataclass or mapping with all that the numbers depend on: case, scale, data,
            device.
        compute: Gives the numbers, as JSON can hold them.
    """
    known = {
        "settings": settings if isinstance(settings, Mapping) else asdict(settings),
        "rsfl": rsfl.__version__,
    }
    path = folder / f"{key(known)}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({**known, "numbers": compute()}, indent=1))
        part.replace(path)  # a run that is killed leaves no half a file
    numbers: dict[str, Any] = json.loads(path.read_text())["numbers"]
    return numbers


def difference(first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> tuple[float, float]:
    """By how much one way scores more than another on the same test images: the mean, and its
    standard error.

    Both hold a row of scores for each training. Images are a sample, each its own control, and so
    are trainings where there are several.
    """
    gains = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    variance = gains.mean(axis=0).var(ddof=1) / gains.shape[1]
    if len(gains) > 1:
        variance += gains.mean(axis=1).var(ddof=1) / len(gains)
    return float(gains.mean()), float(variance**0.5)


def verdict(gaps: Iterable[tuple[float, float]]) -> str:
    """The verdict on a claim that each of some gaps is positive: what it is on all pages.

    ``agrees`` if every gap is above 0 by more than two of its standard errors, ``differs`` if one
    is below 0 by more than two, else ``cannot tell``. A claim that two things are alike within a
    margin is that the margin less their distance is positive; without a margin it can be refuted
    alone: the gap is minus their distance. What is known exactly goes to :func:`word`.

    Args:
        gaps: Each with its standard error.
    """
    told = [0 if abs(value) <= 2 * error else (1 if value > 0 else -1) for value, error in gaps]
    return "cannot tell" if not told or min(told) == 0 else word(min(told) > 0)


def sure(value: float, error: float) -> str:
    """The verdict on one gap."""
    return verdict([(value, error)])


def word(agrees: bool) -> str:
    """The verdict on a claim that is known to be true or false, without an error."""
    return "agrees" if agrees else "differs"


def monotone(values: Iterable[float], *, rising: bool) -> str:
    """The verdict on a claim that each of some exact values is above (below) the one before it."""
    steps = np.diff(list(values))
    return word(len(steps) > 0 and bool((steps > 0 if rising else steps < 0).all()))


def report(
    out: Path, scale: str, differs: Sequence[str], verdicts: Mapping[str, str], seconds: float
) -> None:
    """Print what differs from the paper and each claim's verdict; the same to
    ``out/verdicts.json``."""
    for line in differs:
        print(f"other than in the paper: {line}")
    for claim, said in verdicts.items():
        print(f"{claim}: {said}")
    content = {
        "scale": scale,
        "seconds": seconds,
        "differs": list(differs),
        "verdicts": dict(verdicts),
        **machine(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "verdicts.json").write_text(json.dumps(content, indent=1))
