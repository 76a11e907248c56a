"""Files, directories and what is at hand: everything that can be said of them."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import number, stored
from rsfl._fingerprint import weights_hash
from rsfl._laws import from_document, to_document
from rsfl._models import affine_layer, as_given, evaluating
from rsfl.noise import ParameterGaussian
from rsfl.runs.inputs import example
from rsfl.runs.settings import machine
from rsfl.smooth import Ballot, OrbitBallot, ParameterSmoother, Smoother, Voter
from rsfl.verify.arithmetic import affine, length
from rsfl.verify.certificates import check_certificate, check_evidence, rows_of
from rsfl.verify.composed import (
    check_exact,
    check_groups,
    check_joint,
    check_margins,
    check_orbit,
    check_poisoning,
)
from rsfl.verify.documents import read_document, read_lines
from rsfl.verify.evidence import Inputs, check_identity, check_orbit_votes, check_votes
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
        model: The model, under the law that the record names; or a smoother around it, as it has to
            be where some of the parameters carry noise and the record does not say which.
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
        yield from _again(document.kind, subject, content, witness)


def _again(
    kind: str, subject: str, content: Mapping[str, Any], witness: Witness
) -> Iterator[Finding]:
    """What model and data say of a document."""
    if kind == "poisoning certificate":
        kind = "certificate" if content["kind"] == "votes" else "exact certificate"
        content = content["certificate"]
    if kind == "orbit certificate":
        yield from _orbits(subject, content, witness)
    elif kind == "exact certificate":
        yield from _margins(subject, content, witness)
    elif kind == "group certificate":
        yield Finding(subject, "evidence", None, "votes of groups are not cast again")
    elif kind != "ledger":
        votes = content["ballot"]["pairs"] if kind == "joint certificate" else content
        yield from _witnessed(subject, votes, witness)


_FORMATS = {
    "certificate": 2,
    "ballot": 1,
    "ledger": 2,
    "orbit certificate": 1,
    "joint certificate": 1,
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
    return {
        "certificate": check_certificate,
        "ballot": check_evidence,
        "orbit certificate": check_orbit,
        "joint certificate": check_joint,
        "exact certificate": check_exact,
        "group certificate": check_groups,
    }[kind](subject, content)


def _orbits(subject: str, content: Mapping[str, Any], witness: Witness) -> Iterator[Finding]:
    """Whether no picture of an orbit is farther from its centre than a record says, and whether
    the votes at the centres are as it says."""
    ballot = OrbitBallot.of_document(content["ballot"])
    model = witness.model.model if isinstance(witness.model, Voter) else witness.model
    inputs = witness.inputs(model)
    images = torch.stack([inputs(index) for index in ballot.index.tolist()])
    far = ballot.index[~ballot.confirmed(images)].tolist()
    text = f"pictures of the inputs {far[:5]} lie farther from their centres than is said"
    good = f"{len(images)} images: no picture lies farther from its centre than is said"
    yield Finding(subject, "evidence", not far, text if far else good)
    if isinstance(witness.model, Voter):
        voter = witness.model
    else:
        with evaluating(witness.model):
            logits = witness.model(as_given(witness.model, images[:1]).clone())
        voter = Smoother(witness.model, ballot.law, logits.shape[1])
    yield from check_orbit_votes(
        subject,
        ballot,
        voter,
        inputs,
        forged=witness.forged,
        missed=witness.missed,
        batch_size=witness.batch_size,
    )


def _margins(subject: str, content: Mapping[str, Any], witness: Witness) -> Iterator[Finding]:
    """Whether the radii of a linear model are within its margins, from its weights."""
    model = witness.model.model if isinstance(witness.model, Voter) else witness.model
    layer = None if model is None else affine_layer(model)
    if model is None or layer is None:
        yield Finding(subject, "evidence", None, "margins are told by linear models alone")
        return
    told = content["model"]
    if told:
        here = weights_hash(model)
        text = f"model {told[:16]}" + ("" if here == told else f", and {here[:16]} here")
        yield Finding(subject, "identity", here == told, text)
    inputs, linear = witness.inputs(model), layer[1]
    weight = linear.weight.detach().double().tolist()
    bias = [0.0] * len(weight) if linear.bias is None else linear.bias.detach().double().tolist()
    biased = 0.0 if linear.bias is None else 1.0
    logits, norms = [], []
    for index in content["index"]:
        x = inputs(index).double().flatten().tolist()
        logits.append([affine(row, x, one) for row, one in zip(weight, bias, strict=True)])
        norms.append(length([*x, biased]))
    yield from check_margins(subject, content, logits, norms)


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
    elsewhere = content["law"].get("partial") and not law.get("partial")
    if elsewhere and not isinstance(witness.model, Voter):
        text = "noise on some of the parameters: give a smoother that says on which"
        yield Finding(subject, "identity", None, text)
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
    except (IndexError, KeyError) as error:
        yield Finding(subject, "identity", False, f"the data have no such input: {error!r}")
    except (ValueError, TypeError, RuntimeError) as error:
        yield Finding(subject, "identity", False, f"model and data do not fit: {error}")


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
        ballot, alpha = Ballot.of_document(content), settings["alpha"]
        certificate = ballot.certificate(alpha) if ballot.rule is None else ballot.certificate_at()
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
