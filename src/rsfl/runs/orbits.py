"""Certifying the orbits of a data set: a log of ballots, one line an input, that a run appends to
and any reading is made from."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsfl import _document, orbit
from rsfl._batches import indexable
from rsfl._checks import Int64, count
from rsfl._files import appended, locked, replaced
from rsfl._fingerprint import input_hash
from rsfl._laws import to_document
from rsfl._progress import progress as shown_progress
from rsfl._text import floored
from rsfl.orbit import Orbit
from rsfl.runs.inputs import example, labelled, peeked
from rsfl.runs.settings import OLD_BLOCK, autocast, machine
from rsfl.smooth import OrbitBallot, OrbitCertificate, OrbitPlan, Smoother

__all__ = ["OrbitRun", "certify_orbits", "load_orbits"]

_SETTINGS, _LOG = "orbits.json", "orbits.jsonl"
_KIND, _FORMAT = "orbit votes", 2
_READ_AGAIN = 16  # inputs that were certified before, to see that the data are the same


@dataclass(frozen=True)
class OrbitRun:
    """What an orbit run asks of every input.

    Args:
        family: The family of pictures.
        allowance: l2 distance that a picture may be from one of the family.
        alpha: Failure probability for each input.
        plan: How votes are spent.
        seed: Seed of the draws.
        skip: Every ``skip``-th input is certified.
    """

    family: Orbit
    allowance: float = 0.0
    alpha: float = 0.001
    plan: OrbitPlan = field(default_factory=OrbitPlan)
    seed: int = 0
    skip: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.family, Orbit):
            raise TypeError(
                f"family must be an orbit, such as orbit.Rotations(0.5), got {self.family!r}"
            )
        count("skip", self.skip, 1)


def certify_orbits(
    smoother: Smoother,
    dataset: Any,
    run: OrbitRun,
    *,
    out: str | os.PathLike[str],
    limit: int | None = None,
    progress: bool = False,
) -> tuple[OrbitCertificate, Int64]:
    """Certify the orbits of a data set and log the votes; do nothing twice.

    Called again with the same arguments it goes on where it stopped, however that was, and the
    votes are those of an undisturbed run. A larger ``limit`` goes on, too. Each line of the log
    names its run, and some of the inputs that are done are read again: votes of another model, or
    about other data, are not mixed with these.

    Args:
        smoother: What is certified; its noise must be measured in l2.
        dataset: Pairs (x, y) of one image and its label, by index; or two tensors, of all images
            and of all labels.
        run: The family, and how it is certified.
        out: Directory of the run, made if missing.
        limit: Certify at most this many, counted after skipping; None for all.
        progress: Show how far it is.

    Returns:
        The certificate of all inputs done so far, by index, and their labels.

    Raises:
        ValueError: An argument is out of its range, or the directory holds another run.
        TypeError: The data set does not give pairs (x, y) by index.
        BlockingIOError: Another process works on this run.
        OSError: The directory cannot be written. What was done before is safe.
    """
    first, dataset = peeked(dataset)
    if not indexable(dataset):
        raise TypeError(f"dataset must give pairs (x, y) by index, got {type(dataset).__name__}")
    limit = None if limit is None else count("limit", limit, 1)
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    chosen = range(0, len(dataset), run.skip)[:limit]
    with locked(path / _LOG) as descriptor:
        settings = _settings(smoother, example(first, smoother.model), run)
        _agree(path, settings)
        done, end = _read(path, _identity(settings))
        _same(smoother, dataset, done)
        os.ftruncate(descriptor, end)  # a torn line would swallow the next
        os.lseek(descriptor, end, os.SEEK_SET)
        left = [index for index in chosen if index not in done]
        right = sum(_right(run, one) for one in done.values())
        with shown_progress(len(left), shown=progress, what="certifying", unit="input") as bar:
            for index in left:
                one = {"run": _identity(settings)} | _voted(smoother, run, dataset[index], index)
                if not (path / _SETTINGS).exists():
                    # only now: a call that fails at once leaves nothing to disagree with
                    replaced(path / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
                appended(descriptor, _document.line(_KIND, _FORMAT, one), path / _LOG)
                done[index] = one
                right += _right(run, one)
                bar.update(1, certified_accuracy=floored(right / len(done), 3))
    return load_orbits(out, allowance=run.allowance, alpha=run.alpha)


def load_orbits(
    out: str | os.PathLike[str], *, allowance: float | None = None, alpha: float | None = None
) -> tuple[OrbitCertificate, Int64]:
    """Read what an orbit run has certified so far.

    Args:
        out: The run's directory.
        allowance: l2 distance that a picture may be from one of the family; that of the run by
            default.
        alpha: Failure probability for each input; that of the run by default.

    Returns:
        The certificate of the inputs done, by index, and their true labels.

    Raises:
        ValueError: There is no run, or a line of its log is damaged.
    """
    path = Path(out)
    if not (path / _SETTINGS).is_file():
        raise ValueError(f"{path} holds no run of orbits: there is no {_SETTINGS}")
    settings = json.loads((path / _SETTINGS).read_text())
    done, _ = _read(path, _identity(settings))
    found = [done[index] for index in sorted(done)]
    ballot = OrbitBallot.cat([OrbitBallot.of_document(one["ballot"]) for one in found])
    certificate = ballot.certificate(
        allowance=settings["allowance"] if allowance is None else allowance,
        alpha=settings["alpha"] if alpha is None else alpha,
    )
    return certificate, np.array([one["label"] for one in found], dtype=np.int64)


def _voted(smoother: Smoother, run: OrbitRun, item: Any, index: int) -> dict[str, Any]:
    """The votes about one input, as the log keeps them."""
    try:
        x, label = example(item, smoother.model)
        labelled(label, smoother.num_classes)
        began = time.perf_counter()
        ballot = smoother.orbit_ballot(
            x[None],
            run.family,
            allowance=run.allowance,
            alpha=run.alpha,
            plan=run.plan,
            seed=run.seed,
            index=[index],
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"input {index}: {error}") from error
    seconds = round(time.perf_counter() - began, 6)
    return {
        "label": label,
        "input": f"{input_hash(x):016x}",
        "seconds": seconds,
        "ballot": ballot.document(),
    }


def _right(run: OrbitRun, one: Mapping[str, Any]) -> bool:
    """Whether a line of the log certifies its true label."""
    ballot = OrbitBallot.of_document(one["ballot"])
    certificate = ballot.certificate(allowance=run.allowance, alpha=run.alpha)
    return bool(int(certificate.label[0]) == one["label"])


def _settings(smoother: Smoother, first: tuple[torch.Tensor, int], run: OrbitRun) -> dict[str, Any]:
    """What the votes of this run are a function of, as its file says it."""
    x, y = first
    plan = asdict(run.plan)
    del plan["batch_size"]  # of which no vote is a function
    block = smoother.block(x[None])
    return {
        "format": _FORMAT,
        "data": f"{input_hash(x):016x} {y}",
        "orbit": orbit.to_document(run.family),
        "allowance": run.allowance,
        "alpha": run.alpha,
        "plan": plan,
        "seed": run.seed,
        "skip": run.skip,
        "law": to_document(smoother.law),
        "num_classes": smoother.num_classes,
        "spot_checked": smoother.spot_checked,
        "model": smoother.fingerprint(smoother.checked(x[None])).whole,
        "machine": machine(x.device),
        "autocast": autocast(x.device),
        **({} if block == OLD_BLOCK else {"block": block}),
    }


def _agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where the directory holds another run."""
    if not (path / _SETTINGS).exists():
        return
    there = json.loads((path / _SETTINGS).read_text())
    ours = json.loads(json.dumps(settings))  # tuples become lists, as they did there
    for name in ours | there:
        if there.get(name) != ours.get(name):
            raise ValueError(
                f"{path} holds another run: {name} is {there.get(name)!r} there, got "
                f"{ours.get(name)!r}"
            )


def _identity(settings: Mapping[str, Any]) -> str:
    """A hash of all settings, which every line of the log carries."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _same(smoother: Smoother, dataset: Any, done: Mapping[int, Mapping[str, Any]]) -> None:
    """Read some inputs again, to see that they are those that were certified before."""
    for index in list(done)[:: -(len(done) // _READ_AGAIN + 1)]:
        x, label = example(dataset[index], smoother.model)
        if (f"{input_hash(x):016x}", label) != (done[index]["input"], done[index]["label"]):
            raise ValueError(
                f"dataset is not the one of this run: input {index} is another than was certified"
            )


def _read(path: Path, run: str) -> tuple[dict[int, dict[str, Any]], int]:
    """The lines of a run's log by input, and the bytes that they take; a torn last line is left
    out."""
    data = (path / _LOG).read_bytes() if (path / _LOG).exists() else b""
    end = data.rfind(b"\n") + 1
    found: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(data[:end].splitlines(keepends=True), 1):
        try:
            one = _document.parsed(line, _KIND, _FORMAT)
            if one["run"] != run:
                raise ValueError(f"votes of the run {one['run']} in the run {run}")
            found[int(one["ballot"]["index"][0])] = one
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path / _LOG}, line {number}: {error}") from error
    return found, end
