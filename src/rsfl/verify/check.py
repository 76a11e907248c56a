"""Files, directories and what is at hand: everything that can be said of them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import number, stored
from rsfl._laws import from_document, to_document
from rsfl.noise import ParameterGaussian
from rsfl.runs import load
from rsfl.runs.inputs import example
from rsfl.runs.settings import machine
from rsfl.smooth import ParameterSmoother, Smoother, Voter
from rsfl.verify.certificates import check_certificate, check_evidence, rows_of
from rsfl.verify.documents import Document, read_document, read_lines
from rsfl.verify.evidence import Inputs, check_identity, check_votes
from rsfl.verify.findings import Finding, Report
from rsfl.verify.ledgers import check_ledger, rounds_of
from rsfl.verify.published import published

__all__ = ["Printed", "Witness", "verify"]

_SETTINGS = "run.json"
_HEADER = ("law", "measure", "rule", "classes", "dim", "seed", "model", "spot_checked", "condition")
_COLUMNS = ("index", "input", "n0", "selection", "n", "counts")


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


@dataclass(frozen=True)
class Witness:
    """The model and the data of a record, with which votes are cast again.

    Args:
        model: The model, under the law that the record names; or a smoother around it.
        data: Pairs (x, y) by index, as they were certified.
        forged: Share of forged inputs that is to be found.
        missed: Probability with which it may be missed.
        batch_size: Noisy inputs per forward call, as when the votes were cast.
    """

    model: nn.Module | Voter
    data: Any
    forged: float = 0.05
    missed: float = 0.01
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("forged", "missed"):
            value = number(name, getattr(self, name), 0, 1, open_low=True)
            stored(self, **{name: value})

    def voter(self, content: Mapping[str, Any], parameters: Sequence[str] | None) -> Voter:
        """What casts the votes of a record again."""
        if isinstance(self.model, Voter):
            return self.model
        law = from_document(content["law"])
        if isinstance(law, ParameterGaussian):
            return ParameterSmoother(
                self.model, law.sigma, content["classes"], parameters=parameters
            )
        return Smoother(self.model, law, content["classes"])

    def inputs(self, model: nn.Module | None) -> Inputs:
        """The input of an index, where the model computes."""

        @lru_cache(maxsize=64)
        def of(index: int) -> Tensor:
            item = self.data[index]
            return torch.as_tensor(item[0]) if model is None else example(item, model)[0]

        return of


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
    for path in map(Path, paths):
        try:
            found += _checked(path, witness, printed)
        except (OSError, KeyError, TypeError, IndexError, AttributeError) as error:
            found.append(Finding(str(path), "arithmetic", False, f"cannot be read: {error!r}"))
    return Report(tuple(found))


def _checked(path: Path, witness: Witness | None, printed: Printed | None) -> Iterator[Finding]:
    if path.is_dir():
        yield from _check_run(path, witness)
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
    yield from _sealed(document)
    if document.kind not in _KINDS or _KINDS[document.kind][0] != document.version:
        text = f"a {document.kind} of format {document.version} is not known here"
        yield Finding(document.subject, "arithmetic", None, text)
        return
    yield from _KINDS[document.kind][1](document)
    if witness is not None and "counts" in document.content:
        yield from _witnessed(document.subject, document.content, witness)


def _sealed(document: Document) -> Iterator[Finding]:
    if not document.sealed:
        yield Finding(document.subject, "arithmetic", False, "the checksum does not fit")


def _certificate(document: Document) -> Iterator[Finding]:
    return check_certificate(document.subject, document.content)


def _ballot(document: Document) -> Iterator[Finding]:
    return check_evidence(document.subject, document.content)


def _ledger(document: Document) -> Iterator[Finding]:
    return check_ledger(document.subject, rounds_of(document.content))


_KINDS: dict[str, tuple[int, Callable[[Document], Iterator[Finding]]]] = {
    "certificate": (2, _certificate),
    "ballot": (1, _ballot),
    "ledger": (2, _ledger),
}


def _witnessed(
    subject: str,
    content: Mapping[str, Any],
    witness: Witness,
    parameters: Sequence[str] | None = None,
    *,
    same_device: bool = True,
) -> Iterator[Finding]:
    try:
        rows, voter = rows_of(content), witness.voter(content, parameters)
        law = json.loads(json.dumps(to_document(voter.law)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Finding(subject, "identity", False, f"nothing can vote again: {error}")
        return
    inputs = witness.inputs(voter.model)
    try:
        yield from check_identity(subject, content, voter, inputs, law)
        yield from check_votes(
            subject,
            content,
            rows,
            voter,
            inputs,
            forged=witness.forged,
            missed=witness.missed,
            batch_size=witness.batch_size,
            same_device=same_device,
        )
    except IndexError as error:
        yield Finding(subject, "identity", False, f"the data have no such input: {error}")


# --- Directories of runs -------------------------------------------------------------------------


def _check_run(path: Path, witness: Witness | None) -> Iterator[Finding]:
    subject = str(path)
    settings = json.loads((path / _SETTINGS).read_text())
    content, wrong = _merged(path, settings)
    for text in wrong:
        yield Finding(subject, "arithmetic", False, text)
    if wrong or not content["index"]:
        return
    # The directory holds votes; what the library reads from them is what is promised.
    try:
        certificate, _ = load(path)
    except ValueError as error:
        yield from check_evidence(subject, content)
        yield Finding(subject, "arithmetic", False, f"the library does not read it: {error}")
        return
    claims = {
        "alpha": certificate.alpha,
        "reading": _reading(settings),
        "label": certificate.label.tolist(),
        "assumptions": [asdict(one) for one in certificate.assumptions],
        **{
            name: [repr(value) for value in getattr(certificate, name).tolist()]
            for name in ("radius", "p_lower", "p_upper")
        },
    }
    yield from check_certificate(subject, content | claims)
    if witness is not None:
        parameters = settings["parameters"]
        voter = witness.voter(content, parameters)
        x = witness.inputs(voter.model)(content["index"][0])
        here = {"device": x.device.type, "machine": machine(x.device)}
        same = all(settings.get(name) == value for name, value in here.items())
        text = f"votes were cast on {settings.get('device')} {settings.get('machine')}"
        yield Finding(
            subject, "identity", True if same else None, text + ("" if same else f", {here}")
        )
        yield from _witnessed(subject, content, witness, parameters, same_device=same)


def _reading(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings["radius"] is None:
        return {"name": "radius", "runner_up": "complement", "confidence": "clopper-pearson"}
    return {"name": "at", "radius": settings["radius"]}


def _identity(settings: Mapping[str, Any]) -> str:
    """The hash of a run's settings that each of its lines carries."""
    told = ("format", "rule", "threads", "versions")
    fields = {name: value for name, value in settings.items() if name not in told}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _model(settings: Mapping[str, Any]) -> str:
    parts = ("structure", "weights", "attributes", "code", "answers")
    told = "\n".join(settings["model"][part] for part in parts)
    return hashlib.sha256(told.encode()).hexdigest()


def _merged(path: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:  # noqa: C901  # one line's checks
    """The votes of all lines of a run as those of one ballot, and what is wrong with them."""
    rule: dict[str, Any] = {"name": "fixed"}
    if settings["radius"] is not None:
        rule = {name: settings[name] for name in ("radius", "alpha")} | {"n_max": settings["n"]}
        rule["name"] = "sequential"
    wanted = {
        "law": settings["law"],
        "rule": rule,
        "classes": settings["num_classes"],
        "dim": settings["dim"],
        "seed": settings["seed"],
        "model": _model(settings),
        "spot_checked": settings["spot_checked"],
    }
    merged: dict[str, Any] = {name: [] for name in _COLUMNS}
    seen: dict[int, Any] = {}
    wrong = []
    run = _identity(settings)
    for file in sorted(path.glob("votes-*.jsonl")):
        for line in read_lines(file):
            content = line.content
            if not line.sealed:
                wrong.append(f"{line.subject}: the checksum does not fit")
            if content["run"] != run:
                wrong.append(f"{line.subject}: votes of the run {content['run']}, this is {run}")
            for name, value in wanted.items():
                if content[name] != value:
                    text = f"{name} is {content[name]!r}, and {value!r} in {_SETTINGS}"
                    wrong.append(f"{line.subject}: {text}")
            merged |= {name: content[name] for name in _HEADER}
            row = {name: content[name] for name in _COLUMNS}
            if any(len(column) != 1 for column in row.values()):
                wrong.append(f"{line.subject}: not the votes on one input")
                continue
            index = row["index"][0]
            if index in seen:
                if seen[index] != row:
                    wrong.append(f"{line.subject}: other votes for input {index} than before")
                continue
            seen[index] = row
            wrong += [f"{line.subject}: {text}" for text in _misplaced(content, row, settings)]
    for index in sorted(seen):
        for name in _COLUMNS:
            merged[name] += seen[index][name]
    return merged, wrong


def _misplaced(
    content: Mapping[str, Any], row: Mapping[str, Any], settings: Mapping[str, Any]
) -> Sequence[str]:
    """What is wrong with a line in a run of these settings."""
    found = []
    (index,), (n0,), (n,) = row["index"], row["n0"], row["n"]
    if index % settings["skip"] or (
        settings["inputs"] is not None and index // settings["skip"] >= settings["inputs"]
    ):
        found.append(f"input {index} is none of this run")
    if content["impossible"]:
        return found if n == n0 == 0 else [*found, f"{n} votes on an impossible input"]
    enough = n == settings["n"] if settings["radius"] is None else 0 < n <= settings["n"]
    if n0 != settings["n0"] or not enough:
        found.append(f"{n0} and {n} votes, in a run of {settings['n0']} and {settings['n']}")
    return found
