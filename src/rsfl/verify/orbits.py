"""Directories of orbit runs: their settings, and the votes of all lines as one certificate."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsfl._fingerprint import input_hash
from rsfl.runs import machine
from rsfl.smooth import OrbitBallot, Smoother, Voter
from rsfl.verify.composed import check_orbit
from rsfl.verify.documents import Document, read_lines
from rsfl.verify.findings import Finding
from rsfl.verify.witness import Witness, again

__all__ = ["ORBITS", "check_orbit_run"]

ORBITS = "orbits.json"
_LOG, _KIND, _FORMAT = "orbits.jsonl", "orbit votes", 2


def check_orbit_run(path: Path, witness: Witness | None) -> Iterator[Finding]:
    """Whether every line of a directory is of its run, and what the library reads from the votes
    follows from them.

    Args:
        path: The directory.
        witness: The model and the data, if they are at hand.
    """
    subject = str(path / _LOG)
    settings = json.loads((path / ORBITS).read_text())
    lines, wrong = _merged(path / _LOG, settings)
    for text in wrong:
        yield Finding(subject, "arithmetic", False, text)
    if wrong or not lines:
        return
    try:
        ballot = OrbitBallot.cat([OrbitBallot.of_document(one["ballot"]) for one in lines])
        certificate = ballot.certificate(allowance=settings["allowance"], alpha=settings["alpha"])
    except ValueError as error:
        yield Finding(subject, "arithmetic", False, f"the library does not read it: {error}")
        return
    content = {
        "label": certificate.label.tolist(),
        "ballot": json.loads(json.dumps(ballot.document())),
        "allowance": settings["allowance"],
        "alpha": settings["alpha"],
        "assumptions": [asdict(one) for one in certificate.assumptions],
    }
    yield from check_orbit(subject, content)
    if witness is not None:
        yield from _identical(subject, settings, lines, witness)
        yield from again("orbit certificate", subject, content, witness)


def _merged(
    log: Path, settings: Mapping[str, Any]
) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
    """What the lines of a log say, by input, and what is wrong with them."""
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    seen: dict[int, Mapping[str, Any]] = {}
    wrong = []
    for line in read_lines(log):
        content = line.content
        wrong += [f"{line.subject}: {text}" for text in _misplaced(line, settings, identity)]
        if len(content["ballot"]["index"]) != 1:
            wrong.append(f"{line.subject}: not the votes on one input")
            continue
        index = content["ballot"]["index"][0]
        told = {name: value for name, value in content.items() if name != "seconds"}
        if seen.setdefault(index, told) != told:
            wrong.append(f"{line.subject}: other votes for input {index} than before")
    return [seen[index] for index in sorted(seen)], wrong


def _misplaced(line: Document, settings: Mapping[str, Any], identity: str) -> Iterator[str]:
    """What is wrong with a line in a run of these settings."""
    content, ballot = line.content, line.content["ballot"]
    if not line.sealed:
        yield "the checksum does not fit"
    if (line.kind, line.version) != (_KIND, _FORMAT):
        yield f"{line.kind} of format {line.version} are no {_KIND} of format {_FORMAT}"
    if content["run"] != identity:
        yield f"votes of the run {content['run']}, this is {identity}"
    for name in ("law", "orbit", "seed", "spot_checked"):
        if ballot[name] != settings[name]:
            yield f"{name} is {ballot[name]!r}, and {settings[name]!r} in {ORBITS}"
    for index in ballot["index"]:
        if index % settings["skip"]:
            yield f"input {index} is none of this run"


def _identical(
    subject: str,
    settings: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    witness: Witness,
) -> Iterator[Finding]:
    """Whether inputs, model and device are those that a run names."""
    given = witness.given
    inputs = witness.inputs(given.model if isinstance(given, Voter) else given)
    law = OrbitBallot.of_document(lines[0]["ballot"]).law
    voter = given if isinstance(given, Voter) else Smoother(given, law, settings["num_classes"])
    other = [
        str(one["ballot"]["index"][0])
        for one in lines
        if f"{input_hash(inputs(one['ballot']['index'][0])):016x}" != one["input"]
    ]
    text = f"the inputs {', '.join(other[:5])} are others"
    good = f"{len(lines)} inputs are those of the record"
    yield Finding(subject, "identity", not other, text if other else good)
    first = inputs(0)  # about which a run asks its model before the first votes
    here, told = voter.fingerprint(voter.checked(first[None])).whole, settings["model"]
    text = f"model {told[:16]}" + ("" if here == told else f", and {here[:16]} here")
    yield Finding(subject, "identity", here == told, text)
    where = machine(first.device)
    text = f"votes were cast on {settings['machine']}"
    same = settings["machine"] == where
    yield Finding(subject, "identity", same or None, text + ("" if same else f", {where}"))
