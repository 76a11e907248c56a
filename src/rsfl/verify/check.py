"""Files, directories and what is at hand: everything that can be said of them."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsfl.verify.certificates import check_certificate, check_evidence
from rsfl.verify.composed import (
    check_exact,
    check_groups,
    check_joint,
    check_orbit,
    check_poisoning,
)
from rsfl.verify.directories import RUN, check_run
from rsfl.verify.documents import read_document
from rsfl.verify.dual import check_dual
from rsfl.verify.findings import Finding, Report
from rsfl.verify.ledgers import check_ledger, rounds_of
from rsfl.verify.orbits import ORBITS, check_orbit_run
from rsfl.verify.published import published
from rsfl.verify.witness import Witness, again

__all__ = ["Printed", "verify"]


@dataclass(frozen=True)
class Printed:
    """How the radii of a classic log came about, which it does not say.

    Args:
        law: Name and parameters of the noise, such as ``{"name": "Gaussian", "sigma": 0.5}``.
        n: Votes an input.
        alpha: Failure probability of each input.
    """

    law: Mapping[str, Any]
    n: int
    alpha: float


def verify(
    *paths: str | os.PathLike[str],
    witness: Witness | None = None,
    printed: Printed | None = None,
) -> Report:
    """Check certificates, ballots, directories of runs, ledgers and classic logs.

    What can be derived from a file alone is derived a second time, in ball arithmetic. With the
    model and the data a random sample of its votes is cast again, and compared; and both are
    compared with what the record names.

    Args:
        paths: Files and directories.
        witness: The model and the data.
        printed: What classic logs do not say.

    Returns:
        The findings; ``report.holds`` is the answer.

    Raises:
        ValueError: There is no path, or a classic log without ``printed``.
        ImportError: python-flint is not installed.
    """
    if not paths:
        raise ValueError("paths must name a file or a directory, got none")
    found: list[Finding] = []
    at_hand = _AtHand(witness, printed, _ledgers(map(Path, paths)))
    for path in map(Path, paths):
        try:
            found += _checked(path, at_hand)
        except (OSError, KeyError, TypeError, IndexError, AttributeError) as error:
            found.append(Finding(str(path), "arithmetic", False, f"cannot be read: {error!r}"))
    return Report(tuple(found))


@dataclass(frozen=True)
class _AtHand:
    """What there is beside a file."""

    witness: Witness | None
    printed: Printed | None
    ledgers: Mapping[str, list[dict[str, Any]]]

    def rounds(self, model: str) -> list[dict[str, Any]] | None:
        """The rounds of the ledger that ends with a model; of the only one if that is not known."""
        if len(self.ledgers) == 1:
            return next(iter(self.ledgers.values()))
        return self.ledgers.get(model) if model else None


def _ledgers(paths: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The rounds of all ledgers among some files, by the hashes of the models they end with."""
    found = {}
    for path in paths:
        try:
            document = read_document(path)
            if document.kind == "ledger":
                rounds = rounds_of(document.content)
                found[rounds[-1]["model_hash"] or str(path)] = rounds
        except (OSError, KeyError, TypeError, ValueError, IndexError):
            continue  # it is no ledger, or will be said to be none
    return found


def _checked(path: Path, at_hand: _AtHand) -> Iterator[Finding]:
    witness, printed = at_hand.witness, at_hand.printed
    if path.is_dir():
        orbits = (path / ORBITS).is_file()
        if orbits:
            yield from check_orbit_run(path, witness)
        if not orbits or (path / RUN).is_file():
            yield from check_run(path, witness)
        return
    if path.read_bytes()[:1] != b"{":
        if printed is None:
            raise ValueError(
                f"n, alpha and the law must be given for the log {path}, which does not say them"
            )
        yield from published(path, printed.law, n=printed.n, alpha=printed.alpha)
        return
    try:
        document = read_document(path)
    except ValueError as error:
        yield Finding(str(path), "arithmetic", False, str(error))
        return
    subject, content = document.subject, document.content
    if not document.sealed:
        yield Finding(subject, "arithmetic", False, "the checksum does not fit")
    if _FORMATS.get(document.kind) != document.version:
        text = f"a {document.kind} of format {document.version} is not known here"
        yield Finding(subject, "arithmetic", None, text)
        return
    try:
        yield from _by_kind(document.kind, subject, content, at_hand)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        yield Finding(subject, "arithmetic", False, f"no {document.kind}: {error!r}")
        return
    if witness is not None:
        yield from again(document.kind, subject, content, witness)


_FORMATS = {
    "certificate": 2,
    "ballot": 1,
    "ledger": 2,
    "orbit certificate": 1,
    "joint certificate": 1,
    "dual certificate": 1,
    "exact certificate": 1,
    "group certificate": 1,
    "poisoning certificate": 1,
}


def _by_kind(
    kind: str, subject: str, content: Mapping[str, Any], at_hand: _AtHand
) -> Iterator[Finding]:
    """What the numbers of a document say by themselves."""
    if kind == "ledger":
        return check_ledger(subject, rounds_of(content))
    if kind == "poisoning certificate":
        rounds = at_hand.rounds(content["certificate"].get("model", ""))
        return check_poisoning(subject, content, rounds)
    checks: dict[str, Callable[[str, Mapping[str, Any]], Iterator[Finding]]] = {
        "certificate": check_certificate,
        "ballot": check_evidence,
        "orbit certificate": check_orbit,
        "joint certificate": check_joint,
        "dual certificate": check_dual,
        "exact certificate": check_exact,
        "group certificate": check_groups,
    }
    return checks[kind](subject, content)
