"""Certifying a data set, in pieces that are on the disk before the next begins."""

import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from rsfl._checks import Int64, count
from rsfl.runs.log import Record, certified, data_of, read_log, recording, records, true_labels
from rsfl.runs.settings import FILE, Settings, fingerprint
from rsfl.smooth import Certificate, ParameterSmoother, Voter, floored

__all__ = ["Interrupted", "certify", "example", "peeked"]

_VOTES, _INPUTS = 10_000, 16  # of a group, at most, as far as one input does not take more
_READ_AGAIN = 16  # inputs that were certified before, to see that the data are the same
_SHARING = 256  # inputs of a group whose noisy models are drawn once for all of them


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and did so between two groups of inputs. ``signal`` says by which signal."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Hold back the first SIGINT or SIGTERM; the function yielded says which came, 0 for none. A second one acts."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came = 0
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        nonlocal came
        came = number
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        restore()


def _indexable(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)


def peeked(dataset: Any) -> tuple[Any, Any]:
    """The first item of a data set, and a data set that still has it."""
    if _indexable(dataset):
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


def _owner(group: int, world_size: int) -> int:
    """The rank that certifies a group. It depends on nothing else, so ranks that start at different times agree.

    Of as many consecutive groups as there are ranks, each rank has one. Its place among them jumps about (by multiples
    of the golden ratio), so that another number of ranks shares what a lost one has left.
    """
    turn = group // world_size * 0x9E3779B97F4A7C15 % 2**64 >> 32
    return (group + turn) % world_size


def _groups(dataset: Any, settings: Settings) -> Iterator[list[tuple[int, Callable[[], Any]]]]:
    """The inputs to certify, a few at a time: their indices, and functions that load them.

    Inputs that share a batch may share its rounding errors. Who shares one is therefore a function of the settings
    alone: not of the clock, of the number of ranks, or of what has been done.
    """
    items: Iterator[tuple[int, Callable[[], Any]]]
    if _indexable(dataset):
        chosen = range(0, len(dataset), settings.skip)[: settings.limit]
        items = ((index, partial(dataset.__getitem__, index)) for index in chosen)
    else:
        stop = None if settings.limit is None else (settings.limit - 1) * settings.skip + 1
        walk = itertools.islice(enumerate(dataset), 0, stop, settings.skip)
        items = ((index, partial(lambda item: item, item)) for index, item in walk)
    while group := list(itertools.islice(items, _group_size(settings))):
        yield group


def _group_size(settings: Settings) -> int:
    """Enough to fill a device, few enough to do again after a kill; a sequential test begins with few votes each."""
    if settings.parameters is not None:
        return _SHARING
    return _INPUTS if settings.radius is not None else min(max(_VOTES // settings.n, 1), _INPUTS)


def _certified(
    group: list[tuple[int, Callable[[], Any]]], settings: Settings, smoother: Voter, batch_size: int | None
) -> tuple[Certificate, list[tuple[Tensor, int]]]:
    """The certificate of one group, and its inputs with their labels."""
    inputs = [example(load(), smoother.model) for _, load in group]
    for (index, _), (x, _) in zip(group, inputs, strict=True):
        if x.shape != settings.input_shape:
            raise ValueError(f"input {index} has shape {tuple(x.shape)}, the first one {settings.input_shape}")
    batch = torch.stack([x for x, _ in inputs])
    shared: dict[str, Any] = {"n0": settings.n0, "alpha": settings.alpha, "seed": settings.seed}
    shared |= {"index": [index for index, _ in group], "batch_size": batch_size}
    if settings.radius is None:
        return smoother.certify(batch, n=settings.n, **shared), inputs
    return smoother.certify_at(batch, settings.radius, n_max=settings.n, **shared), inputs


def _same(found: Iterable[tuple[int, str]], done: Mapping[int, Record]) -> None:
    """Raise ValueError if an input is not the one that was certified before under its index."""
    for index, data in found:
        if index in done and data != done[index].data:
            raise ValueError(f"dataset is not the one of this run: input {index} is another than was certified")


def certify(
    smoother: Voter,
    dataset: Any,
    *,
    out: str | Path,
    n0: int = 100,
    n: int | None = None,
    alpha: float = 0.001,
    radius: float | None = None,
    seed: int = 0,
    skip: int = 1,
    limit: int | None = None,
    batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> tuple[Certificate, Int64]:
    """Certify a data set and log the votes; do nothing twice.

    Called again with the same arguments it goes on where it was stopped, however it was stopped, and the votes are
    those of an undisturbed run, bit for bit (on hardware and software that repeat themselves). Several processes may
    share the work: each passes its ``rank``. What a lost one has left is done by calling again with any number of
    them; another number than before shares it evenly. Some of the inputs that are done are read again: data that have
    changed are another run. So is a model whose weights, buffers or plain attributes have.

    The classifier that is certified computes in the type of the model's first parameter: inputs are converted to it.

    Args:
        smoother: What is certified.
        dataset: Pairs (x, y) of one input and its label, by index or one after the other.
        out: Directory of the run, made if missing.
        n0: Votes for selection, at least 1.
        n: Votes for estimation, or at most this many if ``radius`` is given; the smoother's ``default_n`` if None.
        alpha: Probability, for each input, with which the certificate may be wrong.
        radius: Ask only whether each input is certified at this radius, by a sequential test.
        seed: Seed of the draws.
        skip: Certify every how many inputs one.
        limit: Certify at most so many, counted after skipping; None for all.
        batch_size: Noisy inputs per forward call; None chooses one that fits.
        rank: Which process this is, in [0, world_size).
        world_size: How many share the work.
        progress: Show how far it is.

    Returns:
        What :func:`load` gives: the certificate of all inputs done so far, by whichever process, and their labels.

    Raises:
        ValueError: An argument is out of its range, or the directory holds another run, or votes or data of one.
        TypeError: The data set does not yield pairs (x, y).
        BlockingIOError: Another process works on this rank of the run.
        OSError: The directory cannot be written. What was done before is safe.
        Interrupted: SIGINT or SIGTERM came; the inputs at work were finished and are safe.
    """
    world_size = count("world_size", world_size, 1)
    rank = count("rank", rank)
    if rank >= world_size:
        raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
    skip = count("skip", skip, 1)
    limit = None if limit is None else count("limit", limit, 1)
    first, dataset = peeked(dataset)
    x, y = example(first, smoother.model)
    settings = Settings(
        law=smoother.law,
        radius=radius,
        n0=n0,
        n=smoother.default_n if n is None else n,
        alpha=alpha,
        seed=seed,
        num_classes=smoother.num_classes,
        input_shape=tuple(x.shape),
        dim=smoother.dim(x[None]),
        dtype=str(x.dtype).removeprefix("torch."),
        device=x.device.type,
        model=fingerprint(smoother.model),
        parameters=smoother.parameters if isinstance(smoother, ParameterSmoother) else None,
        data=fingerprint((x, y)),
        skip=skip,
        limit=limit,
        inputs=len(range(0, len(dataset), skip)[:limit]) if _indexable(dataset) else None,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with recording(out, rank) as append, _signals() as stopped:
        if (out / FILE).exists():
            settings.agree(out)
        done = read_log(out, settings)
        again = list(done)[:: -(len(done) // _READ_AGAIN + 1)] if _indexable(dataset) else []
        _same(((index, data_of(*example(dataset[index], smoother.model))) for index in again), done)

        size, total = _group_size(settings), None
        if settings.inputs is not None:
            mine = (p for p in range(settings.inputs) if _owner(p // size, world_size) == rank)
            total = sum(p * skip not in done for p in mine)
        bar = tqdm(
            total=total,
            unit="input",
            desc=f"rank {rank}" if world_size > 1 else None,
            mininterval=0.5 if sys.stderr.isatty() else 60,
            disable=not progress or total == 0,
        )
        seen = right = 0
        with bar:
            for number, group in enumerate(_groups(dataset, settings)):
                if _owner(number, world_size) != rank or all(index in done for index, _ in group):
                    if not _indexable(dataset):  # they had to be read to get past them
                        _same(((index, data_of(*example(load(), smoother.model))) for index, load in group), done)
                    continue
                began = time.perf_counter()
                certificate, inputs = _certified(group, settings, smoother, batch_size)
                seconds = (time.perf_counter() - began) / len(group)
                if seen == 0:  # only now: a call that fails at once leaves no settings to disagree with
                    settings.establish(out)
                made = records(settings, certificate, inputs, seconds)
                _same(((record.index, record.data) for record in made), done)
                new = [record for record in made if record.index not in done]
                append(new)
                right += int((certificate.label.cpu() == torch.tensor([label for _, label in inputs])).sum())
                seen += len(group)
                bar.set_postfix({"certified accuracy": floored(right / seen, 3)}, refresh=False)
                bar.update(len(new))
                if came := stopped():
                    raise Interrupted(f"{signal.Signals(came).name}: stopped, all votes are safe in {out}", came)
    found = list(read_log(out, settings).values())
    return certified(settings, found), true_labels(found)
