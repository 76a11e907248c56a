"""Certifying a data set, in pieces that are on the disk before the next begins."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from rsfl._batches import indexable
from rsfl._checks import Int64, choice, count
from rsfl._fingerprint import input_hash
from rsfl._models import input_dtype
from rsfl._progress import progress as shown_progress
from rsfl._text import floored
from rsfl.runs.inputs import example, labelled, peeked
from rsfl.runs.log import Directory, Record, records, refused, true_labels
from rsfl.runs.schedule import groups, owner, remaining
from rsfl.runs.settings import FILE, Settings, autocast, machine
from rsfl.smooth import Ballot, ByCount, Certificate, Inputs, ParameterSmoother, Voter, stacked

__all__ = ["Interrupted", "certify"]

OnBad: TypeAlias = Literal["raise", "record"]
Item: TypeAlias = tuple[int, Callable[[], Any]]
"""The number of an input, and what loads it."""

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


@dataclass(frozen=True)
class _Work:
    """How the records of a group of inputs come about."""

    smoother: Voter
    settings: Settings
    batch_size: int | None
    on_bad: OnBad

    def records(self, group: Sequence[Item]) -> list[Record]:
        """The records of a group, by input."""
        good: list[tuple[int, Tensor | Inputs, int]] = []
        bad: list[Record] = []
        for index, load in group:
            with _naming(index):
                x, label = example(load(), self.smoother.model)
            try:
                self._check(x, label)
                good.append((index, x, label))
            except (TypeError, ValueError) as error:
                if self.on_bad == "raise":
                    raise type(error)(f"input {index}: {error}") from error
                bad.append(refused(self.settings, index, label, str(error)))
        if good:
            began = time.perf_counter()
            ballot = self._ballot(stacked([x for _, x, _ in good]), [i for i, _, _ in good])
            seconds = (time.perf_counter() - began) / len(good)
            bad += records(self.settings, ballot, [label for _, _, label in good], seconds)
        return sorted(bad, key=lambda record: record.index)

    def _check(self, x: Tensor | Inputs, label: int) -> None:
        labelled(label, self.settings.num_classes)
        if x.shape != self.settings.input_shape:
            raise ValueError(
                f"it has shape {tuple(x.shape)}, the first one {self.settings.input_shape}"
            )
        self.smoother.checked(x[None])

    def _ballot(self, x: Any, index: list[int]) -> Ballot:
        rule = self.settings.rule
        shared: dict[str, Any] = {"n0": self.settings.n0, "seed": self.settings.seed}
        shared |= {"index": index, "batch_size": self.batch_size}
        if rule is None:
            ByCount().enough(self.settings.n, self.settings.alpha)
            return self.smoother.ballot(x, n=self.settings.n, **shared)
        return self.smoother.ballot_at(x, rule.radius, alpha=rule.alpha, n_max=rule.n_max, **shared)

    def same(self, group: Iterable[Item], done: Mapping[int, Record]) -> None:
        """Read inputs again, to see that they are those that were certified before."""
        for index, load in group:
            if index in done and not done[index].impossible:
                x, label = example(load(), self.smoother.model)
                _compare(index, (f"{input_hash(x):016x}", label), done[index])


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Errors in the block say of which input they are."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"input {index}: {error}") from error


def _same(made: Iterable[Record], done: Mapping[int, Record]) -> None:
    """Raise ValueError if an input is not the one that was certified before under its index."""
    for record in made:
        if record.index in done:
            _compare(record.index, record.data, done[record.index])


def _compare(index: int, data: tuple[str, int], before: Record) -> None:
    if data != before.data:
        raise ValueError(
            f"dataset is not the one of this run: input {index} is another than was certified"
        )


def certify(  # noqa: PLR0913  # a run's settings
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
    on_bad: OnBad = "raise",
    progress: bool = False,
) -> tuple[Certificate, Int64]:
    """Certify a data set and log the votes; do nothing twice.

    Called again with the same arguments it resumes, however it was stopped, and the votes are those
    of an undisturbed run, bit for bit (on hardware and software that repeat themselves). Several
    processes may share the work: each passes its ``rank``. What a lost one has left is done by
    calling again with any number of them; another number than before shares it evenly. Some of the
    inputs that are done are read again: data that have changed are another run. So is a model whose
    weights, attributes, hooks or code have changed, or its answers about the first input, or the
    machine; the error names which.

    Noise is added to the inputs as they are in the data set; what the model gets is converted to
    the dtype of its first parameter, which is a part of the classifier that is certified.

    Args:
        smoother: What is certified.
        dataset: Pairs (x, y) of one input and its label, by index or one after the other; or two
            tensors, of all inputs and of all labels. Labels count from 0.
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
        on_bad: What to do about an input that cannot be certified (NaN, another shape, off the
            law's grid): ``raise``, or ``record`` the reason and go on. What was recorded abstains.
        progress: Show how far it is.

    Returns:
        What :func:`load` gives: the certificate of all inputs done so far, by whichever process,
        and their labels.

    Raises:
        ValueError: An argument is out of its range, or the directory holds another run, or votes or
            data of one; or an input, which is named, cannot be certified.
        TypeError: The data set does not yield pairs (x, y), or yields whole batches.
        BlockingIOError: Another process works on this rank of the run.
        OSError: The directory cannot be written. What was done before is safe.
        Interrupted: SIGINT or SIGTERM came; the inputs at work were finished and are safe.
    """
    if not isinstance(smoother, Voter):
        raise TypeError(
            f"smoother must be a smoother, such as smooth.GaussianSmoother(model, sigma=0.5, "
            f"num_classes=10), got {type(smoother).__name__}"
        )
    world_size = count("world_size", world_size, 1)
    rank = count("rank", rank)
    if rank >= world_size:
        raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
    choice("on_bad", on_bad, get_args(OnBad))
    skip = count("skip", skip, 1)
    limit = None if limit is None else count("limit", limit, 1)
    first, dataset = peeked(dataset)
    asked = {"n0": n0, "alpha": alpha, "radius": radius, "seed": seed, "skip": skip, "limit": limit}
    asked["n"] = smoother.default_n if n is None else n
    settings = _settings(smoother, example(first, smoother.model), dataset, asked)
    work = _Work(smoother, settings, batch_size, on_bad)
    run = Directory(Path(out), settings)
    run.path.mkdir(parents=True, exist_ok=True)
    with run.recording(rank) as append, _signals() as stopped:
        if (run.path / FILE).exists():
            settings.agree(run.path)
        done = run.records()
        if indexable(dataset):
            again = list(done)[:: -(len(done) // _READ_AGAIN + 1)]
            work.same(((index, partial(dataset.__getitem__, index)) for index in again), done)
        total = remaining(settings, done, rank, world_size)
        what = "certifying" + (f", rank {rank}" if world_size > 1 else "")
        seen = right = 0
        with shown_progress(total, shown=progress and total != 0, what=what, unit="input") as bar:
            for number, group in enumerate(groups(dataset, settings)):
                if owner(number, world_size) != rank or all(index in done for index, _ in group):
                    if not indexable(dataset):  # they had to be read to get past them
                        work.same(group, done)
                    continue
                made = work.records(group)
                if seen == 0:  # only now: a call that fails at once leaves nothing to disagree with
                    settings.establish(run.path)
                _same(made, done)
                new = [record for record in made if record.index not in done]
                append(new)
                label = torch.from_numpy(true_labels(made))
                right += int((run.certificate(made).label == label).sum())
                seen += len(group)
                bar.update(len(new), certified_accuracy=floored(right / seen, 3))
                if came := stopped():
                    raise Interrupted(
                        f"{signal.Signals(came).name}: stopped, all votes are safe in {out}", came
                    )
    found = list(run.records().values())
    return run.certificate(found), true_labels(found)


def _settings(
    smoother: Voter, first: tuple[Any, int], dataset: Any, asked: dict[str, Any]
) -> Settings:
    """What the votes of this run are a function of."""
    x, y = first
    skip, limit = asked["skip"], asked["limit"]
    dtype = x.dtype if smoother.model is None else input_dtype(smoother.model, x)
    return Settings(
        law=smoother.law,
        num_classes=smoother.num_classes,
        input_shape=tuple(x.shape),
        dim=smoother.dim(x[None]),
        dtype=str(dtype).removeprefix("torch."),
        device=x.device.type,
        machine=machine(x.device),
        autocast=autocast(x.device),
        model=smoother.fingerprint(smoother.checked(x[None])),
        spot_checked=smoother.spot_checked,
        parameters=smoother.parameters if isinstance(smoother, ParameterSmoother) else None,
        data=f"{input_hash(x):016x} {y}",
        touched=smoother.touched,
        condition=smoother.condition,
        judged=smoother.judged,
        block=smoother.block(x[None]),
        inputs=len(range(0, len(dataset), skip)[:limit]) if indexable(dataset) else None,
        **asked,
    )
