"""Votes and numbers as JSON takes them, and back: what ballots, certificates and the lines of a
vote log have in common. ``docs/format.md`` says it in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsfl._laws import from_document, to_document
from rsfl.assumptions import Assumption
from rsfl.smooth.reading import Numbers, Sequential
from rsfl.smooth.votes import Votes

__all__ = [
    "CONDITIONS",
    "evidence_from",
    "evidence_to",
    "follow",
    "merged",
    "reals_from",
    "reals_to",
]

_HOW = ("dim", "seed", "model", "spot_checked", "condition")
_OPTIONAL = ("touched", "judged")  # where there is nothing to say, nothing is
CONDITIONS = ("index", "inputs", *_HOW, *_OPTIONAL)
"""What a ballot says of its votes beside law and rule."""

_HEADER = ("law", "measure", "rule", "classes", *_HOW)
_COLUMNS = ("index", "input", "n0", "selection", "n", "counts")
_ROUNDING = 1e-9
"""Up to which share a number of another version may differ from the one derived here."""


def evidence_to(
    *, law: Any, rule: Sequential | None, selection: Votes, votes: Votes, **rest: Any
) -> dict[str, Any]:
    """The content of a ballot: what the votes were cast under, and then column by column the votes
    of each input, those of classes that have any."""
    dim, seed, model = rest["dim"], rest["seed"], rest["model"]
    return {
        "law": to_document(law),
        "measure": {"norm": law.norm, "space": law.space, "unit": law.unit},
        "rule": {"name": "fixed"} if rule is None else {"name": "sequential"} | vars(rule),
        "classes": votes.counts.shape[1],
        "dim": dim,
        "seed": seed,
        "model": model,
        "spot_checked": rest["spot_checked"],
        "condition": rest["condition"],
        **({"touched": rest["touched"]} if rest["touched"] else {}),
        **({"judged": [asdict(one) for one in rest["judged"]]} if rest["judged"] else {}),
        "index": rest["index"].tolist(),
        "input": [f"{value:016x}" if value else "" for value in rest["inputs"].tolist()],
        "n0": selection.n.tolist(),
        "selection": _sparse(selection.counts),
        "n": votes.n.tolist(),
        "counts": _sparse(votes.counts),
    }


def evidence_from(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a ballot, from the content of one.

    Raises:
        ValueError: The votes do not add up, or the law is unknown here or measures something else.
        KeyError, TypeError: Something is missing, or of another type.
    """
    law = from_document(content["law"])
    measure = {"norm": law.norm, "space": law.space, "unit": law.unit}
    if content["measure"] != measure:
        raise ValueError(f"the law measured {content['measure']} and measures {measure} here")
    rule = dict(content["rule"])
    name = rule.pop("name")
    if name not in ("fixed", "sequential"):
        raise ValueError(f"rule must be fixed or sequential, got {name!r}")
    size, classes = len(content["index"]), content["classes"]
    if any(len(content[column]) != size for column in _COLUMNS):
        raise ValueError(f"every column must hold {size} entries, one for each input")
    selection, votes = (
        _votes(content[counts], content[n], classes)
        for counts, n in (("selection", "n0"), ("counts", "n"))
    )
    return {
        "law": law,
        "rule": None if name == "fixed" else Sequential(**rule),
        "selection": selection,
        "votes": votes,
        "index": torch.tensor(content["index"], dtype=torch.int64),
        "inputs": torch.tensor([int(text or "0", 16) for text in content["input"]]).long(),
        **{name: content[name] for name in _HOW},
        "touched": content.get("touched", ""),
        "judged": tuple(Assumption(**one) for one in content.get("judged", ())),
    }


def merged(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of one ballot, from those of several inputs under the same conditions."""
    first = contents[0]
    for other in contents[1:]:
        for name in (*_HEADER, *_OPTIONAL):
            one, another = (content.get(name, "") for content in (first, other))
            if one != another:
                raise ValueError(f"ballots must agree in {name}, got {one!r} and {another!r}")
    columns = {name: [one for content in contents for one in content[name]] for name in _COLUMNS}
    said = {name: first[name] for name in _OPTIONAL if name in first}
    return {**{name: first[name] for name in _HEADER}, **said, **columns}


def _sparse(counts: Tensor) -> list[dict[str, int]]:
    array = counts.cpu().numpy()
    return [{str(label): int(row[label]) for label in np.flatnonzero(row)} for row in array]


def _votes(rows: Sequence[Mapping[str, int]], cast: Sequence[int], classes: int) -> Votes:
    counts = np.zeros((len(rows), classes), dtype=np.int64)
    for i, row in enumerate(rows):
        for label, votes in row.items():
            if not 0 <= int(label) < classes:
                raise ValueError(f"a vote for {label}, none of the {classes} classes")
            if type(votes) is not int or votes < 0:
                raise ValueError(f"{votes!r} is no number of votes")
            counts[i, int(label)] = votes
    invalid = np.asarray(cast, dtype=np.int64).reshape(-1) - counts.sum(axis=1)
    if (invalid < 0).any():
        worst = int(invalid.argmin())
        raise ValueError(f"{counts[worst].sum()} votes of {cast[worst]} are accounted for")
    return Votes(torch.from_numpy(counts), torch.from_numpy(invalid))


def reals_to(column: Tensor) -> list[str]:
    """Numbers as texts, exactly: infinity is no number in JSON."""
    return [repr(value) for value in column.tolist()]


def reals_from(texts: Sequence[str]) -> list[float]:
    """The numbers that :func:`reals_to` wrote."""
    return [float(text) for text in texts]


def follow(derived: Numbers, claims: Sequence[Sequence[float]], index: Tensor) -> None:
    """Raise ValueError where a claim is not what follows from the votes."""
    for name, ours, theirs in zip(Numbers._fields, derived, claims, strict=True):
        if len(theirs) != len(ours):
            raise ValueError(f"{name} must hold {len(ours)} numbers, got {len(theirs)}")
        for place, (value, claimed) in enumerate(zip(ours.tolist(), theirs, strict=True)):
            same = value == claimed or (
                name != "label" and abs(value - claimed) <= _ROUNDING * abs(value) < float("inf")
            )
            if not same:
                raise ValueError(
                    f"the {name} of input {int(index[place])} is {claimed!r} in the file, and "
                    f"{value!r} follows from its votes"
                )
