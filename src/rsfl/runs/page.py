"""One page about a run, for whoever has to show what was certified: Markdown or HTML, to be kept
beside a model card."""

import base64
import hashlib
import html
import io
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsfl._files import replaced
from rsfl._text import floored, raised
from rsfl.assumptions import Assumption
from rsfl.runs.curves import (
    accuracy_interval,
    average_certified_radius,
    certified_accuracy,
    certified_rate,
    independent,
)
from rsfl.runs.log import Directory, true_labels
from rsfl.runs.plots import plot_certified_accuracy
from rsfl.runs.settings import FILE

__all__ = ["evidence"]

_BASES = {
    "checked": "Checked while the run went on",
    "spot-checked": "Checked on a few examples",
    "configured": "Implied by how the run was configured",
    "trusted": "Trusted: the caller answers for it",
}


@dataclass(frozen=True)
class _Section:
    """A part of the page: a heading, a paragraph, a table, and text that is shown as it is."""

    heading: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    code: str = ""


def evidence(
    out: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    radii: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    title: str = "Certified robustness",
    command: str | None = None,
) -> None:
    """Write a page about a run, for whoever has to show it.

    It says what was certified, under which assumptions, on which data and how far, with hashes of
    all files, versions, and the command that verifies it.

    Args:
        out: The run's directory.
        path: The page; ``.md`` for Markdown, with the plot in a file beside it, or ``.html``, which
            holds everything.
        radii: The radii of the table, at least 0.
        title: Heading of the page.
        command: What verifies the run; by default ``rsfl verify`` with names to be filled in.

    Raises:
        ValueError: There is no run, or it holds no input yet; or the page is of another kind.
        OSError: The page cannot be written.
        ImportError: matplotlib is not installed, which draws the plot.
    """
    path = Path(path)
    if path.suffix not in (".md", ".html"):
        raise ValueError(f"path must end in .md or .html, got {str(path)!r}")
    sections, plot = _sections(Path(out), radii, command)
    if path.suffix == ".html":
        replaced(path, _as_html(title, sections, plot).encode())
        return
    image = path.with_suffix(".png")
    replaced(image, plot)
    replaced(path, _as_markdown(title, sections, image.name).encode())


def _sections(
    out: Path, radii: Sequence[float], command: str | None
) -> tuple[list[_Section], bytes]:
    run = Directory.open(out)
    found = list(run.records().values())
    if not found:
        raise ValueError(f"{out} holds no input yet")
    certificate, labels = run.certificate(found), true_labels(found)
    settings = json.loads((out / FILE).read_text())
    plot = _plot(certificate, labels)
    told = {
        "noise": str(run.settings.law),
        "votes that select the class": str(settings["n0"]),
        "votes that bound its probability": ("at most " if settings["radius"] is not None else "")
        + str(settings["n"]),
        "failure probability of each certificate": f"{certificate.alpha:g}",
        "seed": str(settings["seed"]),
        "computed in": f"{settings['dtype']} on {settings['device']} ({settings['machine']})",
    }
    if settings["radius"] is not None:
        told["radius that was asked for"] = f"{settings['radius']:g} {certificate.unit}"
    data = {
        "inputs certified": f"{len(found)}"
        + (f" of {settings['inputs']}" if settings["inputs"] is not None else ""),
        "shape of an input": " x ".join(map(str, settings["input_shape"])),
        "every so many": str(settings["skip"]),
        "classes": str(settings["num_classes"]),
        "hash of the first input, and its label": settings["data"],
    }
    what = (
        f"With probability at least {1 - certificate.alpha:g} for each input: every change of "
        f"{certificate.norm} norm below the radius (in {certificate.unit}, {certificate.space} "
        f"space) leaves the label of the smoothed classifier as it is. "
        f"{int(certificate.abstained.sum())} of {len(found)} inputs are not certified."
    )
    model = list(settings["model"].items())
    sections = [
        _Section("What was certified", what, ("", ""), list(told.items())),
        _Section("On which data", "", ("", ""), list(data.items())),
        _figures(certificate, labels, radii),
        *_assumed(certificate.assumptions),
        _Section("Model", "Fingerprints of its parts.", ("", "SHA-256"), model),
        _Section("Files", f"Run {run.settings.identity}.", ("file", "SHA-256"), _hashes(out)),
        _Section("Versions", "", ("", ""), list(settings["versions"].items())),
    ]
    given = f"rsfl verify {shlex.quote(str(out))} --model MODULE:MODEL --data MODULE:DATA"
    how = (
        "Derives every number a second time, and votes again on a random sample of the inputs; the "
        "exit status is 0 where everything holds."
    )
    return [*sections, _Section("How to verify this page", how, code=command or given)], plot


def _figures(certificate: Any, labels: Any, radii: Sequence[float]) -> _Section:
    """Certified accuracy, with an interval where inputs are independent."""
    try:
        independent(certificate)
        shared = False
    except ValueError:
        shared = True
    rows = []
    for radius in radii:
        shares = [
            floored(certified_accuracy(certificate, labels, radius), 4),
            floored(certified_rate(certificate, radius), 4),
        ]
        interval = "" if shared else _interval(certificate, labels, radius)
        rows.append([f"{radius:g}", *shares, interval])
    text = f"Average certified radius: {floored(average_certified_radius(certificate, labels))}."
    columns = ("radius", "right and certified", "certified", "95 % interval of the first")
    return _Section("How far", text, columns, rows)


def _interval(certificate: Any, labels: Any, radius: float) -> str:
    low, high = accuracy_interval(certificate, labels, radius)
    return f"{floored(float(np.asarray(low)))} to {raised(float(np.asarray(high)))}"


def _assumed(assumptions: Sequence[Assumption]) -> list[_Section]:
    """What the promise rests on, by who answers for it."""
    found = []
    for basis, heading in _BASES.items():
        rows = [[one.id, one.statement, one.where] for one in assumptions if one.basis == basis]
        if rows:
            found.append(_Section(f"Assumptions. {heading}", "", ("", "what", "by"), rows))
    return found


def _hashes(out: Path) -> list[tuple[str, str]]:
    paths = [out / FILE, *sorted(out.glob("votes-*.jsonl"))]
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def _plot(certificate: Any, labels: Any) -> bytes:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    plot_certified_accuracy({"certified accuracy": (certificate, labels)}, ax=axes)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return image.getvalue()


def _as_markdown(title: str, sections: Sequence[_Section], image: str) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.heading}", ""]
        lines += [section.text, ""] if section.text else []
        if section.heading == "How far":
            lines += [f"![certified accuracy over the radius]({image})", ""]
        if section.rows:
            table = [section.columns, ["---"] * len(section.columns), *section.rows]
            lines += [f"| {' | '.join(map(_cell, row))} |" for row in table] + [""]
        lines += ["```sh", section.code, "```", ""] if section.code else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2em .6em;text-align:left;"
    "vertical-align:top;overflow-wrap:anywhere}img{max-width:100%}"
)


def _as_html(title: str, sections: Sequence[_Section], plot: bytes) -> str:
    heading = html.escape(title)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{heading}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{heading}</h1>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
        parts += [f"<p>{html.escape(section.text)}</p>"] if section.text else []
        if section.heading == "How far":
            data = base64.b64encode(plot).decode()
            alt = "certified accuracy over the radius"
            parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
        if section.rows:
            parts.append(f"<table>{_row('th', section.columns)}")
            parts += [_row("td", row) for row in section.rows]
            parts.append("</table>")
        parts += [f"<pre>{html.escape(section.code)}</pre>"] if section.code else []
    return "\n".join([*parts, "</body></html>", ""])


def _row(cell: str, row: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{html.escape(str(one))}</{cell}>' for one in row)}</tr>"
