"""Certifying a data set, in pieces that are on the disk before the next begins."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from rsfl._checks import Int64, count
from rsfl._models import input_dtype
from rsfl._progress import progress as shown_progress
from rsfl.runs.inputs import example, peeked
from rsfl.runs.log import Record, certified, data_of, read_log, recording, records, true_labels
from rsfl.runs.schedule import groups, owner, remaining
from rsfl.runs.settings import FILE, Settings, fingerprint
from rsfl.smooth import Certificate, ParameterSmoother, Voter, floored
from rsfl.train.batches import indexable

__all__ = ["Interrupted", "certify"]

_READ_AGAIN = 16  # inputs that were certified before, to see that the data are the same


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and did so between two groups of inputs. ``signal`` says by which
    signal."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Hold back the first SIGINT or SIGTERM; the function yielded says which came, 0 for none. A
    second one acts."""
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
        if (
            signal.getsignal(number) != signal.SIG_IGN
        ):  # as of a command that a shell runs in the background
            before[number] = signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        restore()


def _certified(
    group: list[tuple[int, Callable[[], Any]]],
    settings: Settings,
    smoother: Voter,
    batch_size: int | None,
) -> tuple[Certificate, list[tuple[Tensor, int]]]:
    """The certificate of one group, and its inputs with their labels."""
    inputs = [example(load(), smoother.model) for _, load in group]
    for (index, _), (x, _) in zip(group, inputs, strict=True):
        if x.shape != settings.input_shape:
            raise ValueError(
                f"input {index} has shape {tuple(x.shape)}, the first one {settings.input_shape}"
            )
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
            raise ValueError(
                f"dataset is not the one of this run: input {index} is another than was certified"
            )


def certify(
    smoother: Voter,
    dataset: Any,
    *,
    out: str | os.PathLike[str],
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
    progress: bool = False,
) -> tuple[Certificate, Int64]:
    """Certify a data set and log the votes; do nothing twice.

    Called again with the same arguments it resumes, however it was stopped, and the votes are those
    of an undisturbed run, bit for bit (on hardware and software that repeat themselves). Several
    processes may share the work: each passes its ``rank``. What a lost one has left is done by
    calling again with any number of them; another number than before shares it evenly. Some of the
    inputs that are done are read again: data that have changed are another run. So is a model whose
    weights, buffers or plain attributes have.

    Noise is added to the inputs as they are in the data set; what the model gets is converted to
    the dtype of its first parameter, which is a part of the classifier that is certified.

    Args:
        smoother: What is certified.
        dataset: Pairs (x, y) of one input and its label, by index or one after the other; or two
            tensors, of all inputs and of all labels.
        out: Directory of the run, made if missing.
        n0: Votes for selection, at least 1.
        n: Votes for estimation, or at most this many if ``radius`` is given; the smoother's
            ``default_n`` if None.
        alpha: Probability, for each input, with which the certificate may be wrong.
        radius: Ask only whether each input is certified at this radius, by a sequential test.
        seed: Seed of the draws.
        skip: Certify every ``skip``-th input.
        limit: Certify at most this many, counted after skipping; None for all.
        batch_size: Noisy inputs per forward call; None chooses one that fits.
        rank: Which process this is, in [0, world_size).
        world_size: How many share the work.
        progress: Show how far it is.

    Returns:
        What :func:`load` gives: the certificate of all inputs done so far, by whichever process,
        and their labels.

    Raises:
        ValueError: An argument is out of its range, or the directory holds another run, or votes or
            data of one.
        TypeError: The data set does not yield pairs (x, y), or yields whole batches.
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
        dtype=str(input_dtype(smoother.model, x)).removeprefix("torch."),
        device=x.device.type,
        model=fingerprint(smoother.model),
        parameters=smoother.parameters if isinstance(smoother, ParameterSmoother) else None,
        data=fingerprint((x, y)),
        skip=skip,
        limit=limit,
        inputs=len(range(0, len(dataset), skip)[:limit]) if indexable(dataset) else None,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with recording(out, rank) as append, _signals() as stopped:
        if (out / FILE).exists():
            settings.agree(out)
        done = read_log(out, settings)
        again = list(done)[:: -(len(done) // _READ_AGAIN + 1)] if indexable(dataset) else []
        _same(((index, data_of(*example(dataset[index], smoother.model))) for index in again), done)

        total = remaining(settings, done, rank, world_size)
        what = "certifying" + (f", rank {rank}" if world_size > 1 else "")
        seen = right = 0
        with shown_progress(total, shown=progress and total != 0, what=what, unit="input") as bar:
            for number, group in enumerate(groups(dataset, settings)):
                if owner(number, world_size) != rank or all(index in done for index, _ in group):
                    if not indexable(dataset):  # they had to be read to get past them
                        _same(
                            (
                                (index, data_of(*example(load(), smoother.model)))
                                for index, load in group
                            ),
                            done,
                        )
                    continue
                began = time.perf_counter()
                certificate, inputs = _certified(group, settings, smoother, batch_size)
                seconds = (time.perf_counter() - began) / len(group)
                if (
                    seen == 0
                ):  # only now: a call that fails at once leaves no settings to disagree with
                    settings.establish(out)
                made = records(settings, certificate, inputs, seconds)
                _same(((record.index, record.data) for record in made), done)
                new = [record for record in made if record.index not in done]
                append(new)
                right += int(
                    (certificate.label.cpu() == torch.tensor([label for _, label in inputs])).sum()
                )
                seen += len(group)
                bar.update(len(new), certified_accuracy=floored(right / seen, 3))
                if came := stopped():
                    raise Interrupted(
                        f"{signal.Signals(came).name}: stopped, all votes are safe in {out}", came
                    )
    found = list(read_log(out, settings).values())
    return certified(settings, found), true_labels(found)
