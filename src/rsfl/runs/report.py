"""Summaries of several runs: figures, text and JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsfl._checks import Float64, Int64, numbers
from rsfl._text import floored, raised
from rsfl.runs.curves import (
    accuracy_interval,
    average_certified_radius,
    certified_accuracy,
    envelope,
    high_probability_accuracy,
)
from rsfl.runs.log import Directory, true_labels
from rsfl.runs.tables import Published, read_tsv
from rsfl.smooth import ABSTAIN, Certificate, RunnerUp

__all__ = ["Run", "as_json", "as_text", "read_runs"]


@dataclass(frozen=True)
class Run:
    """A certified test set with a name.

    Attributes:
        name: What it is called in tables and plots.
        certificate: Its certificates, or what a classic file says.
        labels: (B,) its true labels.
        seconds: (B,) what each input took.
        inputs: How many inputs there are to certify, None if unknown.
        alpha: Failure probability of each certificate, None if unknown.
        asked: The one radius that a sequential run was asked about, else None.
    """

    name: str
    certificate: Certificate | Published
    labels: Int64
    seconds: Float64
    inputs: int | None
    alpha: float | None
    asked: float | None = None

    @property
    def curve(self) -> tuple[Certificate | Published, Int64]:
        """What the functions of this room take."""
        return self.certificate, self.labels


def read_runs(
    paths: Sequence[str],
    *,
    alpha: float | None = None,
    runner_up: RunnerUp = "complement",
    norm: str = "l2",
    unit: str = "input units",
) -> list[Run]:
    """The runs of some directories and classic files, called by the last part of their paths where
    that is unique.

    ``norm`` and ``unit`` are those of the files, which do not say it.

    Raises:
        ValueError: One cannot be read, or holds nothing yet.
        OSError: One is not there.
    """
    names = Counter(Path(path).name for path in paths)
    runs = []
    for path in paths:
        name = Path(path).name if names[Path(path).name] == 1 else path
        if Path(path).is_dir():
            directory = Directory.open(path)
            settings, found = directory.settings, list(directory.records().values())
            certificate = directory.certificate(found, alpha=alpha, runner_up=runner_up)
            seconds = np.array([record.seconds for record in found])
            run = Run(
                name,
                certificate,
                true_labels(found),
                seconds,
                settings.inputs,
                certificate.alpha,
                settings.radius,
            )
        else:
            said, labels = read_tsv(path, norm=norm, unit=unit)
            run = Run(name, said, labels, said.seconds.numpy(), None, alpha)
        if len(run.labels) == 0:
            raise ValueError(f"{path} holds no input yet")
        runs.append(run)
    return runs


def _parsed(radii: Sequence[str]) -> Float64:
    try:
        values = [float(text) for text in radii]
    except ValueError as error:
        raise ValueError(f"radii must be numbers, got {','.join(radii)!r}") from error
    return numbers("radii", values, 0)


def _abstained(run: Run) -> int:
    return int((run.certificate.label == ABSTAIN).sum())


def as_json(runs: Sequence[Run], radii: Sequence[str]) -> str:
    """``{"runs": [{"name", "n", "radii": {"0.25": 0.61, ...}, "acr", "abstained"}], "envelope":
    {...}}``.

    ``n`` and ``abstained`` count inputs; the keys of ``radii`` are the texts that were given. The
    envelope is null if the runs differ in what they measure or in their test sets.
    """
    values = _parsed(radii)

    def keyed(shares: Float64) -> dict[str, float]:
        return dict(zip(radii, shares.tolist(), strict=True))

    try:
        best = keyed(envelope({run.name: run.curve for run in runs}, values))
    except ValueError:
        best = None
    document: dict[str, Any] = {
        "runs": [
            {
                "name": run.name,
                "n": len(run.labels),
                "radii": keyed(certified_accuracy(*run.curve, values)),
                "acr": average_certified_radius(*run.curve),
                "abstained": _abstained(run),
            }
            for run in runs
        ],
        "envelope": best,
    }
    return json.dumps(document)


def _section(run: Run, texts: Sequence[str], radii: Float64, *, rho: float) -> list[str]:
    certificate, size = run.certificate, len(run.labels)
    whole = "" if run.inputs in (None, size) else f" of {run.inputs}: the run is not finished"
    level = "" if run.alpha is None else f", alpha = {run.alpha!r} for each"
    measure = f"{certificate.norm} radius in {certificate.unit}"
    law = (
        f"{measure}, {certificate.law}"
        if isinstance(certificate, Certificate)
        else f"as published, taken for {measure}"
    )
    votes = (
        f" and {certificate.n.double().mean():.0f} votes"
        if isinstance(certificate, Certificate)
        else ""
    )
    lines = [
        f"{run.name}: {size} inputs{whole}",
        f"  {law}{level}",
        f"  average certified radius {floored(average_certified_radius(*run.curve))}, "
        f"{_abstained(run)} abstained, "
        f"{run.seconds.mean():.3g} s{votes} for an input",
    ]
    if run.asked is not None:
        lines.append(f"  asked only whether the radius is at least {run.asked!r}")
    elif isinstance(certificate, Certificate):
        parts = np.quantile(
            certificate.p_lower.numpy(), [0.1, 0.25, 0.5, 0.75, 0.9], method="lower"
        )
        lines.append(
            f"  p_A is at least (10, 25, 50, 75, 90 % of inputs): "
            f"{', '.join(floored(float(p)) for p in parts)}"
        )
    share = certified_accuracy(*run.curve, radii)
    rows = [f"{'r':>10}{'certified':>12}", *_rows(texts, share)]
    if isinstance(certificate, Certificate) and certificate.space == "parameters":
        lines.append(
            "  all inputs share their noise: no interval for the population, no bound for all at "
            "once"
        )
    else:
        low, high = accuracy_interval(*run.curve, radii)
        ends = [f"{floored(a, 3)} - {raised(b, 3)}" for a, b in zip(low, high, strict=True)]
        rows = [
            row + f"{cell:>18}" for row, cell in zip(rows, ["95 % interval", *ends], strict=True)
        ]
        if run.alpha is not None:
            sure = high_probability_accuracy(*run.curve, radii, alpha=run.alpha, rho=rho)
            cells = ["all at once", *(floored(part, 3) for part in sure)]
            rows = [row + f"{cell:>14}" for row, cell in zip(rows, cells, strict=True)]
    if run.asked is not None:
        rows[1:] = [
            f"{text:>10}{'not asked':>12}" if r > run.asked else row
            for text, r, row in zip(texts, radii, rows[1:], strict=True)
        ]
    return lines + rows


def _rows(texts: Sequence[str], shares: Float64) -> list[str]:
    """Radii as they were given, shares floored."""
    return [
        f"{text:>10}{floored(share, 3):>12}"
        for text, share in zip(texts, shares.tolist(), strict=True)
    ]


def as_text(
    runs: Sequence[Run], radii: Sequence[str], *, with_envelope: bool = False, rho: float = 0.001
) -> str:
    """A section for each run. Radii, shares and lower bounds are floored, upper bounds raised; the
    radii of the table are the texts that were given."""
    values = _parsed(radii)
    sections = [_section(run, radii, values, rho=rho) for run in runs]
    if with_envelope:
        best = envelope({run.name: run.curve for run in runs}, values)
        sections.append(
            [
                "upper envelope: the best run at each radius, chosen with this test set",
                *_rows(radii, best),
            ]
        )
    closing = (
        "certified: share of inputs classified correctly and certified against perturbations of "
        "norm below r.\n"
        "95 % interval: of that share in the population that the inputs were drawn from."
    )
    if any(run.alpha is not None for run in runs):
        closing += f"\nall at once: what is left of that share, with probability 1 - {rho!r}, "
        closing += "if certificates are wrong."
    return "\n\n".join("\n".join(section) for section in [*sections, [closing]])
