"""Certificates of a selector and of the levels that it names."""

from collections.abc import Iterator, Mapping
from typing import Any

from rsfl.verify.certificates import (
    ABSTAIN,
    check_assumptions,
    check_certificate,
    real,
    some,
)
from rsfl.verify.findings import Finding

__all__ = ["check_dual"]


def check_dual(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether both certificates follow from their votes, each level is that of the inputs it was
    named for, and the smaller radius is what is claimed of the two."""
    selected, levels = content["selected"], content["levels"]
    parts = [selected, *(one for one in levels if one is not None)]
    for part in parts:
        yield from check_certificate(subject, part)
    wrong = []
    for name in ("alpha", "measure"):
        if any(part[name] != selected[name] for part in parts):
            wrong.append(f"{name} is {[part[name] for part in parts]}, not the same in all")
    found: dict[int, tuple[int, int, float]] = {}  # by input: its level, label and radius
    for number, level in enumerate(levels):
        if level is not None:
            columns = level["index"], level["label"], map(real, level["radius"])
            for index, *claim in zip(*columns, strict=True):
                found[index] = (number, *claim)
    if len(found) != sum(len(part["index"]) for part in parts[1:]):
        wrong.append("an input has more than one level")
    columns = selected["index"], selected["label"], map(real, selected["radius"])
    claims = zip(*columns, content["label"], map(real, content["radius"]), strict=True)
    for index, level, reach, label, radius in claims:
        number, own, inner = found.get(index, (ABSTAIN, ABSTAIN, 0.0))
        if number != level:
            wrong.append(f"input {index} is certified at level {number}, where {level} was named")
        if label != own or not radius <= min(reach, inner):
            text = f"label {label} and radius {radius!r}, where {own} and {min(reach, inner)!r}"
            wrong.append(f"input {index}: {text} follow")
    text = f"levels, labels and smaller radii of {len(content['label'])} inputs follow from both"
    yield Finding(subject, "arithmetic", not wrong, some(wrong) if wrong else text)
    needed = {one["id"]: None for part in parts for one in part["assumptions"]}
    told = {"assumptions": content["assumptions"], "spot_checked": True}
    yield from check_assumptions(subject, told, (*needed, "named-level"))
