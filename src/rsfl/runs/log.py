"""The vote log: one line an input, written once, read back whole or not at all.

A run directory holds ``run.json`` (:class:`rsfl.runs.settings.Settings`) and a file of votes for
each rank that ever wrote, ``votes-00000.jsonl`` and on. Every line names the run and the input that
its votes are of, and ends in a checksum of itself.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsfl import bounds
from rsfl._checks import Int64, number
from rsfl._files import appended, locked
from rsfl.runs.settings import FORMAT, Settings, fingerprint
from rsfl.smooth import Certificate
from rsfl.smooth.certificate import certified_by_count, certified_by_test
from rsfl.smooth.votes import Votes

__all__ = [
    "Record",
    "certified",
    "data_of",
    "load",
    "read_log",
    "read_shard",
    "recording",
    "records",
    "true_labels",
]


@dataclass(frozen=True)
class Record:
    """The votes of one input.

    Attributes:
        run: Identity of the settings under which they were cast.
        data: Fingerprint of the input and its label.
        index: Which input.
        label: Its true label.
        rule: What stopped the votes: ``fixed`` or ``sequential``.
        n0: Votes for selection.
        n: Votes for estimation.
        selection: Votes for each class that has any, of the selection; the rest of n0 was invalid.
        counts: The same of the estimation.
        invalid: How many of the n had non-finite logits.
        seconds: What they took.
    """

    run: str
    data: str
    index: int
    label: int
    rule: str
    n0: int
    n: int
    selection: Mapping[int, int]
    counts: Mapping[int, int]
    invalid: int
    seconds: float

    def line(self) -> bytes:
        """The record as it is written."""
        body = json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":")).encode()
        return body[:-1] + _seal(body) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Record":
        """The record of a line without its line break.

        Raises:
            ValueError: This is not a line that was written here, from its first byte to its last,
                in this format.
        """
        start = max(len(line) - len(_seal(b"")), 0)
        body = line[:start] + b"}"
        if line[start:] != _seal(body):
            raise ValueError("the checksum does not fit the line")
        values = json.loads(body)
        if (found := values.pop("format", 1)) != FORMAT:
            raise ValueError(f"format is {found!r}, this version reads {FORMAT}")
        for name in ("selection", "counts"):
            values[name] = {int(label): votes for label, votes in values[name].items()}
        return cls(**values)

    def check(self, settings: Settings) -> None:
        """Raise ValueError if the votes are not of a run with these settings."""
        if self.run != settings.identity:
            raise ValueError(f"votes of the run {self.run} in the run {settings.identity}")
        if self.rule != settings.rule:
            raise ValueError(f"{self.rule} votes in a {settings.rule} run")
        enough = self.n == settings.n if settings.rule == "fixed" else self.n <= settings.n
        if self.n0 != settings.n0 or not enough:
            raise ValueError(
                f"{self.n0} and {self.n} votes in a run of {settings.n0} and {settings.n}"
            )
        counted = sum(self.counts.values()) + self.invalid
        if counted != self.n or sum(self.selection.values()) > self.n0:
            raise ValueError(f"{counted} votes of {self.n} are accounted for")
        if any(not 0 <= label < settings.num_classes for label in (*self.selection, *self.counts)):
            raise ValueError(f"a vote for none of the {settings.num_classes} classes")


def _seal(body: bytes) -> bytes:
    """What ends the line of a record, in place of the closing brace."""
    return b',"crc32":"%08x"}' % zlib.crc32(body)


def records(
    settings: Settings,
    certificate: Certificate,
    inputs: Sequence[tuple[Tensor, int]],
    seconds: float,
) -> list[Record]:
    """One record for each input of a certificate, with its label; ``seconds`` is for each."""

    def sparse(row: Tensor) -> dict[int, int]:
        return {label: int(row[label]) for label in row.nonzero()[:, 0].tolist()}

    c = certificate.cpu()
    return [
        Record(
            run=settings.identity,
            data=data_of(x, label),
            index=int(c.index[i]),
            label=label,
            rule=settings.rule,
            n0=int(c.n0[i]),
            n=int(c.n[i]),
            selection=sparse(c.selection_counts[i]),
            counts=sparse(c.counts[i]),
            invalid=int(c.invalid[i]),
            seconds=round(seconds, 6),
        )
        for i, (x, label) in enumerate(inputs)
    ]


def data_of(x: Tensor, label: int) -> str:
    """What a record keeps to know its input by."""
    return fingerprint((x, label))[:16]


def read_shard(path: Path) -> tuple[list[Record], int]:
    """The records of one file, and the number of bytes that they take.

    A last line without its line break was torn by whatever ended the writer: it is left out.

    Raises:
        ValueError: Another line is not as it was written.
    """
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    found = []
    for number_, line in enumerate(data[:end].split(b"\n")[:-1], 1):
        try:
            found.append(Record.parse(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number_}: {error}") from error
    return found, end


def read_log(out: Path, settings: Settings) -> dict[int, Record]:
    """The records of all ranks by input, in order. The same input may be there twice, with the same
    votes.

    Raises:
        ValueError: A line is not as it was written, or not of this run.
    """
    merged: dict[int, Record] = {}
    for path in sorted(out.glob("votes-*.jsonl")):
        for line, record in enumerate(read_shard(path)[0], 1):
            try:
                record.check(settings)
                first = merged.setdefault(record.index, record)
                if replace(record, seconds=first.seconds) != first:
                    raise ValueError(f"other votes for input {record.index} than before")
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
    return dict(sorted(merged.items()))


@contextmanager
def recording(out: Path, rank: int) -> Iterator[Callable[[Sequence[Record]], None]]:
    """A function that appends records to a rank's file, and returns when the disk has them.

    Raises:
        BlockingIOError: Another process writes this rank's file.
        OSError: The file cannot be written.
    """
    path = out / f"votes-{rank:05d}.jsonl"
    with locked(path) as descriptor:
        _, end = read_shard(path)
        if os.lseek(descriptor, 0, os.SEEK_END) > end:
            os.ftruncate(descriptor, end)  # a torn line would swallow the next
            os.lseek(descriptor, end, os.SEEK_SET)
        yield lambda new: appended(descriptor, b"".join(record.line() for record in new), path)


def _votes(found: Sequence[Mapping[int, int]], invalid: Sequence[int], num_classes: int) -> Votes:
    counts = torch.zeros((len(found), num_classes), dtype=torch.int64)
    for i, row in enumerate(found):
        for label, votes in row.items():
            counts[i, label] = votes
    return Votes(counts, torch.tensor(invalid, dtype=torch.int64))


def certified(
    settings: Settings,
    found: Sequence[Record],
    *,
    alpha: float | None = None,
    runner_up: str = "complement",
    confidence: str = "clopper-pearson",
) -> Certificate:
    """The certificate that recorded votes make."""
    width = settings.num_classes
    selection = _votes(
        [r.selection for r in found], [r.n0 - sum(r.selection.values()) for r in found], width
    )
    votes = _votes([r.counts for r in found], [r.invalid for r in found], width)
    index = torch.tensor([r.index for r in found], dtype=torch.int64)
    law, dim, seed = settings.law, settings.dim, settings.seed
    if settings.radius is None:
        alpha = number(
            "alpha", settings.alpha if alpha is None else alpha, 0, 1, open_low=True, open_high=True
        )
        return certified_by_count(
            law,
            selection,
            votes,
            alpha=alpha,
            index=index,
            seed=seed,
            dim=dim,
            runner_up=runner_up,
            confidence=confidence,
        )
    asked = {
        "alpha": settings.alpha if alpha is None else alpha,
        "runner_up": runner_up,
        "confidence": confidence,
    }
    allowed = {"alpha": settings.alpha, "runner_up": "complement", "confidence": "clopper-pearson"}
    for name, value in asked.items():
        if value != allowed[name]:
            raise ValueError(
                f"{name} must be {allowed[name]!r}, got {value!r}: a sequential test stopped "
                f"these votes at radius "
                f"{settings.radius} and alpha {settings.alpha}, and no other bound holds for them"
            )
    p0 = law.probability(settings.radius, dim=dim)
    chosen = selection.counts.argmax(dim=1)
    successes = votes.counts.gather(1, chosen[:, None])[:, 0].numpy()
    n = (votes.counts.sum(dim=1) + votes.invalid).numpy()
    decided = np.asarray(bounds.sequential_decision(successes, n, p0, settings.alpha)) == 1
    return certified_by_test(
        law,
        selection,
        votes,
        decided,
        radius=settings.radius,
        p0=p0,
        alpha=settings.alpha,
        index=index,
        seed=seed,
    )


def load(
    out: str | os.PathLike[str],
    *,
    alpha: float | None = None,
    runner_up: str = "complement",
    confidence: str = "clopper-pearson",
) -> tuple[Certificate, Int64]:
    """Read what a run has certified so far.

    Votes are what is kept; radii follow from them here. Other arguments give another certificate of
    the same votes. Choose them before you look: the best of several bounds holds at the sum of
    their alphas. (``bounded`` at alpha is never below ``complement`` at alpha / 2, so there is
    nothing to gain from trying both.)

    Args:
        out: The run's directory.
        alpha: Failure probability for each input; that of the run by default. Sequential votes have
            no other.
        runner_up: ``complement`` or ``bounded``, as in :meth:`rsfl.smooth.Smoother.certify`; for a
            fixed number of votes only.
        confidence: ``clopper-pearson`` or ``hoeffding``, likewise.

    Returns:
        The certificate of the inputs done, by index, and their true labels.

    Raises:
        ValueError: There is no run, a line of its log is damaged, or the votes do not allow what is
            asked.
    """
    out = Path(out)
    settings = Settings.read(out)
    found = list(read_log(out, settings).values())
    return certified(
        settings, found, alpha=alpha, runner_up=runner_up, confidence=confidence
    ), true_labels(found)


def true_labels(found: Sequence[Record]) -> Int64:
    """The labels of the inputs, as the data set gave them."""
    return np.array([record.label for record in found], dtype=np.int64)
