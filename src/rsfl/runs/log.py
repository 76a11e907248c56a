"""The vote log: one line an input, written once, read back whole or not at all.

A run directory holds ``run.json`` (:class:`rsfl.runs.settings.Settings`) and a file of votes for
each rank that ever wrote, ``votes-00000.jsonl`` and on. Every line is a ballot
(:class:`rsfl.smooth.Ballot`) of one input as a file holds it, with the run that it belongs to.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsfl import _document
from rsfl._checks import Int64
from rsfl._files import appended, locked
from rsfl.runs.settings import Settings
from rsfl.smooth import Ballot, Certificate, Confidence, RunnerUp, Votes

__all__ = [
    "Directory",
    "Record",
    "load",
    "read_shard",
    "records",
]

_FORMAT = 1
_OWN = ("run", "label", "seconds", "impossible")


@dataclass(frozen=True)
class Record:
    """The ballot of one input.

    Attributes:
        run: Identity of the settings under which the votes were cast.
        label: The input's true label.
        seconds: What the votes took.
        impossible: Why no vote was cast, "" where votes were.
        ballot: What a file says of a ballot of this one input.
    """

    run: str
    label: int
    seconds: float
    impossible: str
    ballot: Mapping[str, Any]

    @property
    def index(self) -> int:
        """Which input."""
        return int(self.ballot["index"][0])

    @property
    def data(self) -> tuple[str, int]:
        """What tells the input from others: a hash of it, and its label."""
        return self.ballot["input"][0], self.label

    def line(self) -> bytes:
        """The record as it is written."""
        own = {name: getattr(self, name) for name in _OWN}
        return _document.line("ballot", _FORMAT, own | dict(self.ballot))

    @classmethod
    def parse(cls, line: bytes) -> "Record":
        """The record of a line with its line break.

        Raises:
            ValueError: This is not a line that was written here, from its first byte to its last,
                in this format.
        """
        content = _document.parsed(line, "ballot", _FORMAT)
        own = {name: content.pop(name) for name in _OWN}
        record = cls(**own, ballot=content)
        if record.line() != line:
            raise ValueError("it is not as it was written")
        return record

    def check(self, settings: Settings) -> None:
        """Raise ValueError if the votes are not of a run with these settings."""
        if self.run != settings.identity:
            raise ValueError(f"votes of the run {self.run} in the run {settings.identity}")
        ballot = Ballot.of_document(dict(self.ballot))
        if ballot.rule != settings.rule:
            raise ValueError(f"votes stopped by {ballot.rule} in a run of {settings.rule}")
        if ballot.touched != settings.touched:
            raise ValueError(
                f"votes under noise on {ballot.touched!r} in a run on {settings.touched!r}"
            )
        if (ballot.condition, ballot.judged) != (settings.condition, settings.judged):
            raise ValueError(
                f"votes of condition {ballot.condition!r} in a run of {settings.condition!r}, or "
                f"of another judgement"
            )
        # The name of a run is easily written into a line: what it stands for is compared as well.
        for name, said, wanted in (
            ("law", ballot.law, settings.law),
            ("classes", ballot.votes.counts.shape[1], settings.num_classes),
            ("dim", ballot.dim, settings.dim),
            ("seed", ballot.seed, settings.seed),
            ("model", ballot.model, settings.model.whole),
            ("spot_checked", ballot.spot_checked, settings.spot_checked),
        ):
            if said != wanted:
                raise ValueError(f"{name} is {said!r}, in a run of {wanted!r}")
        place, rest = divmod(self.index, settings.skip)
        if rest or (settings.inputs is not None and place >= settings.inputs):
            raise ValueError(f"input {self.index} is none of this run")
        if self.impossible:
            return
        n0, n = self.ballot["n0"][0], self.ballot["n"][0]
        enough = n == settings.n if settings.rule is None else n <= settings.n
        if n0 != settings.n0 or not enough:
            raise ValueError(f"{n0} and {n} votes in a run of {settings.n0} and {settings.n}")


def records(
    settings: Settings, ballot: Ballot, labels: Sequence[int], seconds: float
) -> list[Record]:
    """One record for each input of a ballot, with its label; ``seconds`` is for each."""
    content = replace(ballot, model=settings.model.whole).document()
    columns = [
        name for name, value in content.items() if isinstance(value, list) and name != "judged"
    ]
    return [
        Record(
            run=settings.identity,
            label=label,
            seconds=round(seconds, 6),
            impossible="",
            ballot=content | {name: content[name][i : i + 1] for name in columns},
        )
        for i, label in enumerate(labels)
    ]


def refused(settings: Settings, index: int, label: int, why: str) -> Record:
    """The record of an input that cannot be certified: no votes, and the reason."""
    none = Votes(torch.zeros((1, settings.num_classes), dtype=torch.int64))
    ballot = Ballot(
        settings.law,
        none,
        none,
        torch.tensor([index]),
        dim=settings.dim,
        seed=settings.seed,
        rule=settings.rule,
        model=settings.model.whole,
        spot_checked=settings.spot_checked,
        touched=settings.touched,
        condition=settings.condition,
        judged=settings.judged,
    )
    return Record(settings.identity, label, 0.0, why, ballot.document())


def read_shard(path: Path) -> tuple[list[Record], int]:
    """The records of one file, and the number of bytes that they take.

    A last line without its line break was torn by whatever ended the writer: it is left out.

    Raises:
        ValueError: Another line is not as it was written.
    """
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
        try:
            found.append(Record.parse(line + b"\n"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: {_said(error)}") from error
    return found, end


def _said(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"it is no ballot ({error})"


@dataclass(frozen=True)
class Directory:
    """A run on the disk.

    Attributes:
        path: Where it is.
        settings: What its votes are a function of.
    """

    path: Path
    settings: Settings

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Directory":
        """The run in a directory.

        Raises:
            ValueError: There is none, or its settings cannot be read.
        """
        return cls(Path(path), Settings.read(Path(path)))

    def records(self) -> dict[int, Record]:
        """The records of all ranks by input, in order. The same input may be there twice, with the
        same votes.

        Raises:
            ValueError: A line is not as it was written, or not of this run.
        """
        found: dict[int, Record] = {}
        for path in sorted(self.path.glob("votes-*.jsonl")):
            for line, record in enumerate(read_shard(path)[0], 1):
                try:
                    record.check(self.settings)
                    first = found.setdefault(record.index, record)
                    if replace(record, seconds=first.seconds) != first:
                        raise ValueError(f"other votes for input {record.index} than before")
                except ValueError as error:
                    raise ValueError(f"{path}, line {line}: {error}") from error
        return dict(sorted(found.items()))

    @contextmanager
    def recording(self, rank: int) -> Iterator[Callable[[Sequence[Record]], None]]:
        """A function that appends records to a rank's file, and returns when the disk has them.

        Raises:
            BlockingIOError: Another process writes this rank's file.
            OSError: The file cannot be written.
        """
        path = self.path / f"votes-{rank:05d}.jsonl"
        with locked(path) as descriptor:
            _, end = read_shard(path)
            if os.lseek(descriptor, 0, os.SEEK_END) > end:
                os.ftruncate(descriptor, end)  # a torn line would swallow the next
                os.lseek(descriptor, end, os.SEEK_SET)
            yield lambda new: appended(descriptor, b"".join(one.line() for one in new), path)

    def ballot(self, found: Sequence[Record] | None = None) -> Ballot:
        """The votes of these records, or of all that there are."""
        found = list(self.records().values()) if found is None else found
        if not found:
            none = Votes(torch.zeros((0, self.settings.num_classes), dtype=torch.int64))
            settings = self.settings
            return Ballot(settings.law, none, none, dim=settings.dim, seed=settings.seed)
        return Ballot.of_document(*(dict(record.ballot) for record in found))

    def certificate(
        self,
        found: Sequence[Record] | None = None,
        *,
        alpha: float | None = None,
        runner_up: RunnerUp = "complement",
        confidence: Confidence = "clopper-pearson",
    ) -> Certificate:
        """The certificate of these records, or of all that there are, as :func:`load` reads it."""
        ballot, own = self.ballot(found), self.settings.alpha
        if self.settings.rule is None:
            alpha = own if alpha is None else alpha
            return ballot.certificate(alpha, runner_up=runner_up, confidence=confidence)
        asked = {"alpha": alpha, "runner_up": runner_up, "confidence": confidence}
        allowed = {"alpha": own, "runner_up": "complement", "confidence": "clopper-pearson"}
        for name, value in asked.items():
            if value not in (None, allowed[name]):
                raise ValueError(
                    f"{name} must be {allowed[name]!r}, got {value!r}: a sequential test stopped "
                    f"these votes at radius {self.settings.radius} and alpha {own}; the ballot's "
                    f"certificate_at reads them at others"
                )
        return ballot.certificate_at(self.settings.radius, own)


def load(
    out: str | os.PathLike[str],
    *,
    alpha: float | None = None,
    runner_up: RunnerUp = "complement",
    confidence: Confidence = "clopper-pearson",
) -> tuple[Certificate, Int64]:
    """Read what a run has certified so far.

    Votes are what is kept; radii follow from them here. Other arguments give another certificate of
    the same votes. Choose them before you look: the best of several bounds holds at the sum of
    their alphas. (``bounded`` at alpha is never below ``complement`` at alpha / 2, so there is
    nothing to gain from trying both.)

    Args:
        out: The run's directory.
        alpha: Failure probability for each input; that of the run by default. Sequential votes are
            read at the run's own.
        runner_up: ``complement`` or ``bounded``, as in :meth:`rsfl.smooth.Smoother.certify`; for a
            fixed number of votes only.
        confidence: ``clopper-pearson`` or ``hoeffding``, likewise.

    Returns:
        The certificate of the inputs done, by index, and their true labels.

    Raises:
        ValueError: There is no run, a line of its log is damaged, or the votes do not allow what is
            asked.
    """
    run = Directory.open(out)
    found = list(run.records().values())
    certificate = run.certificate(found, alpha=alpha, runner_up=runner_up, confidence=confidence)
    return certificate, true_labels(found)


def true_labels(found: Sequence[Record]) -> Int64:
    """The labels of the inputs, as the data set gave them."""
    return np.array([record.label for record in found], dtype=np.int64)
