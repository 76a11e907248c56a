"""Certificates that are made of others: of orbits, of clients and inputs at once, of linear models
without sampling, and of predictions that a threat did not change."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

from flint import arb

from rsfl.verify import arithmetic
from rsfl.verify.arithmetic import Number, exact
from rsfl.verify.certificates import (
    ABSTAIN,
    check_assumptions,
    check_certificate,
    check_evidence,
    real,
    some,
)
from rsfl.verify.conditions import broken_conditions, drawn
from rsfl.verify.findings import Finding
from rsfl.verify.laws import LAWS
from rsfl.verify.recursion import deviation
from rsfl.verify.rows import Row, rows_of

__all__ = [
    "check_exact",
    "check_groups",
    "check_joint",
    "check_margins",
    "check_orbit",
    "check_poisoning",
]


def _finding(subject: str, wrong: Sequence[str], text: str) -> Finding:
    return Finding(subject, "arithmetic", not wrong, some(wrong) if wrong else text)


# --- Orbits --------------------------------------------------------------------------------------

_ORBIT = (
    "fresh-votes",
    "optional-stopping",
    "split-alpha",
    "per-input",
    "orbit-cover",
    "one-resampling",
    "one-function",
)


def check_orbit(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the votes on the pictures of an orbit carry its labels.

    How far the pictures reach from their centres is geometry: only the images can tell.
    """
    ballot, alpha, allowance = content["ballot"], content["alpha"], content["allowance"]
    law, dim = ballot["law"], prod(ballot["shape"])
    if law.get("name") not in LAWS or not 0 < alpha < 1 or not 0 <= allowance < float("inf"):
        yield Finding(subject, "arithmetic", False, f"no law, alpha or allowance: {law}, {alpha!r}")
        return

    @cache
    def decided(k: int, n: int, reach: float, share: float) -> bool:
        distance = Number(lambda: arb(reach) + allowance)
        p0 = arithmetic.probability(law, distance, dim=dim)
        level = Number(lambda: arb(share) * alpha)
        return not p0.proves_at_least(1.0) and arithmetic.decides(k, n, p0, level)

    wrong = []
    for place, tests in enumerate(ballot["tests"]):
        where = f"input {ballot['index'][place]}"
        if sum(map(Fraction, tests["share"])) > 1 or min(tests["share"], default=0) < 0:
            wrong.append(f"{where}: shares of alpha of more than 1 in all")
        label = content["label"][place]
        if label == ABSTAIN:
            continue
        if label != ballot["chosen"][place]:
            wrong.append(f"{where}: the label is {label}, where the pilot votes chose another")
        owners = tests["owner"]
        if len(owners) != prod(tests["cells"]) or not owners or min(owners) < 0:
            wrong.append(f"{where}: cells of the box without a centre")
            continue
        for one in sorted(set(owners)):
            k, n = tests["successes"][one], tests["trials"][one]
            reach, share = tests["reach"][one], tests["share"][one]
            if not 0 <= k <= n or not reach >= 0 or not decided(k, n, reach, share):
                wrong.append(f"{where}: {k} of {n} votes at centre {one} do not reach {reach!r}")
    yield _finding(
        subject, wrong, f"votes at all centres carry the labels of {len(content['label'])} inputs"
    )
    told = {"assumptions": content["assumptions"], "spot_checked": ballot.get("spot_checked")}
    yield from check_assumptions(subject, told, (*_ORBIT, *LAWS[law["name"]][2]))


# --- Clients and inputs at once ------------------------------------------------------------------


def check_joint(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the radii of every rung follow from the votes that withstand it."""
    pairs, ladder = content["ballot"]["pairs"], content["ballot"]["ladder"]
    yield from check_evidence(subject, pairs)
    rungs, alpha, width = content["rungs"], content["alpha"], len(ladder)
    if not rungs or rungs != sorted(set(rungs)) or not 0 <= rungs[0] <= rungs[-1] < width:
        yield Finding(subject, "arithmetic", False, f"{rungs} are no rungs of {width}")
        return
    if not 0 < alpha < 1 or pairs["law"].get("name") not in LAWS:
        yield Finding(subject, "arithmetic", False, f"no law or alpha: {pairs['law']}, {alpha!r}")
        return
    level = Number(lambda: arb(alpha) / len(rungs)) if content["together"] else exact(alpha)

    @cache
    def reach(k: int, n: int) -> Number:
        p = arithmetic.lower_probability(k, n, level, content["confidence"])
        return arithmetic.radius(pairs["law"], p, dim=pairs["dim"])

    wrong = []
    for rung, labels, radii in zip(rungs, content["label"], content["radius"], strict=True):
        for row, label, text in zip(rows_of(pairs), labels, radii, strict=True):
            at, claimed = _reached(row, rung, width), real(text)
            where = f"input {row.index}, {ladder[rung]}"
            if label == ABSTAIN:
                if not claimed <= 0:
                    wrong.append(f"{where}: it abstains with a radius of {claimed!r}")
            elif label != at.chosen or not claimed > 0 or not row.n:
                wrong.append(
                    f"{where}: the label is {label} at {claimed!r}, selected is {at.chosen}"
                )
            elif not reach(at.successes, at.n).proves_at_least(claimed):
                right = reach(at.successes, at.n)
                wrong.append(f"{where}: radius is {claimed!r}, where {right} follows")
    text = f"labels and radii of {len(rungs)} rungs are proved from their votes"
    yield _finding(subject, wrong, text)
    yield from _check_ladder(subject, ladder, content["ballot"]["assumptions"])


def _check_ladder(
    subject: str, ladder: Sequence[str], assumptions: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Whether rungs that count clients are where they belong, and rest on what such counts do.

    Of a judge of somebody's own nobody else knows what it rests on.
    """
    counted = [re.fullmatch(r"any (\d+) clients?", rung) for rung in ladder]
    if not any(counted):
        return
    placed = [0 if match is None else int(match[1]) for match in counted]
    if placed != list(range(len(ladder))):
        yield Finding(subject, "arithmetic", False, f"rungs out of their order: {list(ladder)}")
    told = {"assumptions": assumptions}
    yield from check_assumptions(subject, told, (*_apart(assumptions), "registered-clients"))


def _reached(row: Row, rung: int, width: int) -> Row:
    """The votes whose label withstands a rung."""

    def kept(votes: Mapping[int, int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for column, many in votes.items():
            label, highest = divmod(column, width)
            if highest >= rung:
                found[label] = found.get(label, 0) + many
        return found

    return Row(row.index, row.n0, kept(row.selection), row.n, kept(row.counts))


# --- Linear models without sampling --------------------------------------------------------------


def check_exact(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """What can be said of an exact certificate without its model: little."""
    columns = [[real(text) for text in content[name]] for name in ("radius", "p_lower", "p_upper")]
    sigma, wrong = content["sigma"], []
    for index, label, radius, low, high in zip(
        content["index"], content["label"], *columns, strict=True
    ):
        if (label == ABSTAIN) != (radius == 0) or not radius >= 0:
            wrong.append(f"input {index}: label {label} with a radius of {radius!r}")
        if sigma is not None:
            law = {"name": "Gaussian", "sigma": float(sigma)}
            follows = arithmetic.radius(law, low, high)
            if not (0 <= low <= 1 and 0 <= high <= 1 and follows.proves_at_least(radius)):
                wrong.append(f"input {index}: radius is {radius!r}, where {follows} follows")
    of = "margins, which only the model tells" if sigma is None else "votes, if they are as said"
    yield _finding(subject, wrong, f"{len(content['index'])} radii of {of}")


def check_margins(
    subject: str,
    content: Mapping[str, Any],
    logits: Sequence[Sequence[Number]],
    norms: Sequence[Number],
) -> Iterator[Finding]:
    """Whether the radii of a linear model are within its margins, from its exact logits.

    Args:
        subject: What the certificate is called.
        content: What it says.
        logits: The exact logits of each input.
        norms: The exact norm of each (x, 1).
    """
    wrong = []
    for index, label, text, values, norm in zip(
        content["index"], content["label"], content["radius"], logits, norms, strict=True
    ):
        if label == ABSTAIN:
            continue
        others = [value for at, value in enumerate(values) if at != label]
        lead = _lead(values[label], others)
        reach = arithmetic.margin_radius(values, norm)
        if not lead.compare(0.0) < 0:
            wrong.append(f"input {index}: {label} is not the label of the model")
        elif not reach.proves_at_least(float(text)):
            wrong.append(f"input {index}: radius is {text}, where the margin is {reach}")
    text = f"{len(logits)} radii are within the margins of the model, in exact arithmetic"
    yield Finding(subject, "evidence", not wrong, some(wrong) if wrong else text)


def _lead(first: Number, others: Sequence[Number]) -> Number:
    """By how much a number is above the largest of others."""

    def enclose() -> arb:
        top = first.enclose()
        found = arb.pos_inf()
        for other in others:
            found = found.min(top - other.enclose())
        return found

    return Number(enclose)


# --- Groups of clients ---------------------------------------------------------------------------


def check_groups(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the vote of groups has the label that it says, and withstands so many clients."""
    voted = cache(arithmetic.group_votes)
    groups, wrong = content["groups"] - len(content["failed"]), []
    for index, votes, label, withstands in zip(
        *(content[name] for name in ("index", "votes", "label", "withstands")), strict=True
    ):
        where = f"input {index}"
        if any(type(one) is not int or one < 0 for one in votes) or sum(votes) > groups:
            wrong.append(f"{where}: {votes} are no votes of {groups} groups")
        elif label == ABSTAIN or not any(votes):
            if (label, withstands) != (ABSTAIN, 0):
                wrong.append(f"{where}: label {label} without votes")
        elif label != (right := voted(tuple(votes)))[0] or not withstands <= right[1]:
            text = f"label {label} and {withstands} clients, where {right} follow"
            wrong.append(f"{where}: {text}")
    text = f"labels of {len(content['index'])} inputs, and the clients that they withstand, follow"
    yield _finding(subject, wrong, text)
    needed = (*_apart(content["assumptions"]), "registered-clients", "one-function")
    yield from check_assumptions(subject, content, needed)


def _apart(assumptions: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What has to be named of what keeps groups apart."""
    named = [one.get("id") for one in assumptions]
    who = "dealt-groups" if "dealt-groups" in named else "disjoint-groups"
    return ("given-groups",) if "given-groups" in named else (who, "separate-groups")


# --- Poisoned clients ----------------------------------------------------------------------------

_ALWAYS = ("fixed-settings", "clean-input-bound", "exact-training")
_AT_LEVEL = {
    "feature": ("threat-respected",),
    "sample": ("threat-respected",),
    "client": ("working-clip",),
    "forensic": ("recorded-settings",),
    "removal": ("others-honest", "drawn-before-removal"),
}


def check_poisoning(
    subject: str, content: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]] | None
) -> Iterator[Finding]:
    """Whether a deviation bounds what a threat can have done, and what it is held against holds.

    Args:
        subject: What the certificate is called.
        content: What it says.
        rounds: Those of the run's ledger, None where it is not at hand.
    """
    base, threat, claimed = content["certificate"], content["threat"], real(content["deviation"])
    check = check_exact if content["kind"] == "exact" else check_certificate
    yield from check(subject, base)
    named = [one.get("id") for one in content["assumptions"]]
    trusted = (*_ALWAYS, *_AT_LEVEL[threat["level"]])
    trusted += ("valid-samples",) if threat.get("valid") else ()
    yield from check_assumptions(subject, content, trusted)
    for either in (("coupled-runs", "any-retraining"), ("known-model", "whole-ledger")):
        if not set(either) & set(named):
            yield Finding(subject, "arithmetic", False, f"it rests on {either[0]}, unsaid")
    if rounds is None:
        text = f"a deviation of {claimed!r}, which only the ledger can show"
        yield Finding(subject, "arithmetic", None, text)
        return
    last, model = rounds[-1].get("model_hash"), base.get("model")
    if content["kind"] == "exact" and model and last and model != last:
        text = f"the ledger ends with the model {last[:12]}, the certificate is of {model[:12]}"
        yield Finding(subject, "identity", False, text)
    broken = broken_conditions(rounds, threat)
    yield _finding(subject, broken, "the run meets every condition that its ledger can show")
    if broken:
        return
    if "any-retraining" in named:
        text = "a run that had nothing to draw is any retraining"
        yield _finding(subject, drawn(rounds, threat), text)
    if any(one["weights_from"] == "registration" for one in rounds) and (
        "registered-sizes" not in named
    ):
        yield Finding(subject, "arithmetic", False, "it rests on registered-sizes, unsaid")
    try:
        bound = deviation(rounds, threat)
        holds = bound.proves_at_most(claimed)
    except (KeyError, TypeError, ValueError) as error:
        yield Finding(subject, "arithmetic", False, f"no deviation follows: {error}")
        return
    text = f"the deviation is {claimed!r}, and at least {bound} follows"
    good = f"a deviation of {claimed!r} is proved from {len(rounds)} rounds, for {_said(threat)}"
    yield Finding(subject, "arithmetic", holds, good if holds else text)


def _said(threat: Mapping[str, Any]) -> str:
    clients = f"clients {threat['clients']}" if threat["clients"] else ""
    most = f"any {threat['at_most']}" if threat["at_most"] else ""
    return f"{' and '.join(one for one in (clients, most) if one)} at the {threat['level']} level"
