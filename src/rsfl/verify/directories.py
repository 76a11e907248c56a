"""Directories of runs: their settings, and the votes of all their lines as those of one ballot."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsfl.runs import machine
from rsfl.smooth import Ballot
from rsfl.verify.certificates import check_certificate, check_evidence
from rsfl.verify.documents import read_lines
from rsfl.verify.findings import Finding
from rsfl.verify.witness import Witness, voted_again

__all__ = ["RUN", "check_run"]

RUN = "run.json"
_HEADER = ("law", "measure", "rule", "classes", "dim", "seed", "model", "spot_checked", "condition")
_COLUMNS = ("index", "input", "n0", "selection", "n", "counts")


def check_run(path: Path, witness: Witness | None) -> Iterator[Finding]:
    """Whether every line of a directory is of its run, and what the library reads from the votes
    follows from them.

    Args:
        path: The directory.
        witness: The model and the data, if they are at hand.
    """
    subject = str(path)
    settings = json.loads((path / RUN).read_text())
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
        here = {
            "device": x.device.type,
            "machine": machine(x.device),
            "block": voter.block(x[None]),
        }
        same = all({"block": 100, **settings}.get(name) == value for name, value in here.items())
        text = f"votes were cast on {settings.get('device')} {settings.get('machine')}"
        yield Finding(
            subject, "identity", True if same else None, text + ("" if same else f", {here}")
        )
        yield from voted_again(subject, content, witness, parameters, same_device=same)


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


def _merged(  # noqa: C901  # one line's checks
    path: Path, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
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
                    text = f"{name} is {content[name]!r}, and {value!r} in {RUN}"
                    wrong.append(f"{line.subject}: {text}")
            merged |= {name: content[name] for name in _HEADER}
            if content.get("touched", "") != settings.get("touched", ""):
                wrong.append(f"{line.subject}: noise on {content.get('touched')!r}")
            for name, none in (("condition", ""), ("judged", [])):
                if content.get(name, none) != settings.get(name, none):
                    wrong.append(f"{line.subject}: {name} is {content.get(name)!r}")
            merged |= {name: content[name] for name in ("touched", "judged") if name in content}
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
