"""Certificates of a selector and of the levels that it names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


def _warp(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the parameters of a deformation deform: its law but for the scale of the noise."""
    if part["measure"]["space"] != "parametric":
        return {}
    return {name: one for name, one in part["law"].items() if name not in ("sigma", "half_width")}


_SHARED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "alpha": lambda part: part["alpha"],
    "measure": lambda part: part["measure"],
    "touched": lambda part: part.get("touched", ""),
    "the deformation": _warp,
}
"""What a selector and its levels have to agree in."""


def _apart(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where a selector, the first of them, and its levels are not of one distance and input."""
    for name, asked in _SHARED.items():
        told = [asked(part) for part in parts]
        if any(one != told[0] for one in told):
            yield f"{name} is {told}, not the same in all"
    selected, *levels = parts
    hashes = dict(zip(selected["index"], selected["input"], strict=True))
    for level in levels:
        for index, one in zip(level["index"], level["input"], strict=True):
            if one and hashes.get(index) and one != hashes[index]:
                yield f"input {index} is one to the selector and another to its level"


def check_dual(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether both certificates follow from their votes, each level is that of the inputs it was
    named for, and the smaller radius is what is claimed of the two."""
    selected, levels = content["selected"], content["levels"]
    parts = [selected, *(one for one in levels if one is not None)]
    for part in parts:
        yield from check_certificate(subject, part)
    wrong = list(_apart(parts))
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
