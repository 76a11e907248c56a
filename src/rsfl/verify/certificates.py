"""Whether the numbers of a certificate follow from its votes: derived a second time, input by
input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, isnan
from typing import Any

from rsfl.assumptions import recorded_features, register
from rsfl.verify import arithmetic
from rsfl.verify.arithmetic import Number, complement, exact
from rsfl.verify.findings import Finding
from rsfl.verify.laws import LAWS, unknown_law
from rsfl.verify.rows import Row, rows_of, whole

__all__ = ["ABSTAIN", "check_assumptions", "check_certificate", "check_evidence", "real", "some"]

ABSTAIN = -1


_SHOWN = 5  # inputs that are named where there are more


_STATISTICS = {
    "radius": ("fresh-votes", "fixed-number"),
    "at": ("fresh-votes", "optional-stopping"),
    "prediction": ("fixed-number",),
}


def some(texts: Sequence[str]) -> str:
    """The first of some texts, and how many more there are."""
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def real(text: Any) -> float:
    """The number that a text stands for, the same for every reader.

    Raises:
        ValueError: It is written in another way than files write numbers.
    """
    if type(text) is not str or repr(float(text)) != text:
        raise ValueError(f"{text!r} is not how a number is written")
    return float(text)


def check_evidence(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """What can be said of votes without the model: that they are votes, under a law that is
    known."""

    def finding(holds: bool | None, text: str) -> Finding:
        return Finding(subject, "arithmetic", holds, text)

    try:
        rows, law, rule = rows_of(content), content["law"], content["rule"]
        whole("a number of coordinates", content["dim"], 1, 2**53)
        whole("a seed", content["seed"], 0, 2**64 - 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield finding(False, f"no votes: {error!r}")
        return
    if problem := unknown_law(law):
        yield finding(None if ":" in str(law.get("name")) else False, problem)
    elif content["measure"] != LAWS[law["name"]][0]:
        yield finding(False, f"radii under {law['name']} are no {content['measure']}")
    if rule.get("name") == "fixed":
        cast = sorted({row.n for row in rows} - {0})
        if len(cast) > 1:
            text = f"the number of votes was fixed, it says, and is {cast} for different inputs"
            yield finding(None, text)
    elif rule.get("name") == "sequential":
        beyond = [str(row.index) for row in rows if row.n > rule["n_max"]]
        if beyond:
            yield finding(False, f"more than {rule['n_max']} votes on the inputs {some(beyond)}")
    else:
        yield finding(False, f"votes are stopped by a fixed number or a test, not by {rule!r}")
    yield finding(True, f"{len(rows)} inputs, {sum(row.n for row in rows)} votes that add up")


def check_assumptions(
    subject: str, content: Mapping[str, Any], needed: Sequence[str]
) -> Iterator[Finding]:
    """Whether a promise names what it rests on, in the words of the register."""
    named = content["assumptions"]
    ids = [one.get("id") for one in named]
    # Of a model that is known to be the ledger's more can have been checked.
    known_model = (recorded_features(),) if "known-model" in ids else ()
    texts: dict[str, list[Mapping[str, Any]]] = {}
    for one in (*register(), *known_model):
        plain = {name: getattr(one, name) for name in ("id", "statement", "basis", "where")}
        texts.setdefault(one.id, []).append(plain)
    missing = [name for name in needed if name not in ids]
    if missing:
        yield Finding(subject, "arithmetic", False, f"it rests on {', '.join(missing)}, unsaid")
    for one in named:
        known = texts.get(one.get("id"), [])
        spot = bool(content.get("spot_checked")) and one.get("basis") == "spot-checked"
        if one not in known and not (spot and one.get("statement") == known[0]["statement"]):
            text = f"assumption {one.get('id')!r} is said in other words than in the register"
            yield Finding(subject, "arithmetic", False, text)
    if not missing:
        text = f"rests on {', '.join(str(one.get('id')) for one in named)}"
        yield Finding(subject, "arithmetic", True, text)


class _Derived:
    """The numbers that follow from votes, each derived once."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.law, self.dim = content["law"], content["dim"]
        self.alpha, self.reading = content["alpha"], content["reading"]
        bounded = self.reading.get("runner_up") == "bounded"
        self.level = self.alpha / 2 if bounded else self.alpha
        self.bounded = bounded
        self.proved = lru_cache(maxsize=None)(self._proved)
        self.decided = lru_cache(maxsize=None)(self._decided)

    def lower(self, k: int, n: int) -> Number:
        return arithmetic.lower_probability(k, n, self.level, self.reading["confidence"])

    def upper(self, k: int, second: int, n: int) -> Number:
        """An upper bound on every other class: its own votes, or what the label leaves."""
        rest = complement(self.lower(k, n))
        if not self.bounded:
            return rest
        own = arithmetic.upper_probability(second, n, self.level, self.reading["confidence"])
        return _Smaller(lambda: own.enclose().min(rest.enclose()), own, rest)

    def _proved(
        self, k: int, second: int, n: int, low: float, high: float, radius: float
    ) -> tuple[str, ...]:
        """What does not follow from k and ``second`` votes of n."""
        found = []
        if n == 0:
            return () if low <= 0 and high >= 1 and radius <= 0 else ("no votes were cast",)
        p_a, p_b = self.lower(k, n), self.upper(k, second, n)
        if not p_a.proves_at_least(low):
            found.append(f"p_lower is {low!r}, where {p_a} follows")
        left = complement(exact(low))  # at least what is left by a bound that was found to hold
        if not ((not found and left.proves_at_most(high)) or p_b.proves_at_most(high)):
            found.append(f"p_upper is {high!r}, where {p_b} follows")
        # Of bounds that were found to hold, else of those that follow.
        bounds = (p_a, p_b) if found else (exact(low), exact(high))
        reach = self.reach(*(bounds if self.bounded else bounds[:1]))
        if not reach.proves_at_least(radius):
            right = self.reach(*((p_a, p_b) if self.bounded else (p_a,)))
            found.append(_excess("radius", radius, right))
        return tuple(found)

    def reach(self, p_a: Number, p_b: Number | None = None) -> Number:
        return arithmetic.radius(self.law, p_a, p_b, dim=self.dim)

    def _decided(self, k: int, n: int, p0: float) -> bool:
        return arithmetic.decides(k, n, p0, self.alpha)


@dataclass(frozen=True)
class _Smaller(Number):
    """The smaller of two numbers, compared through each."""

    one: Number
    other: Number

    def compare(self, claim: Any) -> int:
        return max(self.one.compare(claim), self.other.compare(claim))


def _excess(name: str, claimed: float, right: Number) -> str:
    ball = right.ball()
    follows = f"{name} is {claimed!r}, where {right} follows"
    if not (isfinite(claimed) and ball.is_finite()):
        return follows
    return f"{follows}: {float(claimed - ball.mid()):.3g} too much"


def check_certificate(subject: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether each number of a certificate follows from its votes, alpha, law and rule."""
    yield from check_evidence(subject, content)
    if unknown_law(content["law"]):
        return
    try:
        found = _check_rows(content)
        needed = _needed(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Finding(subject, "arithmetic", False, f"no certificate: {error!r}")
        return
    wrong = [f"input {index}: {text}" for index, texts in found for text in texts]
    text = f"labels, bounds and radii of {len(found)} inputs are proved from their votes"
    yield Finding(subject, "arithmetic", not wrong, some(wrong) if wrong else text)
    yield from check_assumptions(subject, content, needed)


def _needed(content: Mapping[str, Any]) -> tuple[str, ...]:
    law, reading = content["law"], content["reading"]["name"]
    rest = ("same-rest",) if law.get("partial") else ()
    rest = (*rest, "other-parts") if content.get("touched") else rest
    rest = (*rest, "counted-if-withstood") if content.get("condition") else rest
    rest = (*rest, *(one["id"] for one in content.get("judged", ())))
    return (*_STATISTICS[reading], "per-input", "one-function", *LAWS[law["name"]][2], *rest)


def _check_rows(content: Mapping[str, Any]) -> list[tuple[int, tuple[str, ...]]]:
    rows, derived = rows_of(content), _Derived(content)
    if not 0 < derived.alpha < 1:
        raise ValueError(f"alpha = {derived.alpha!r} is no probability of failure")
    reading = derived.reading["name"]
    allowed = {"fixed": _READINGS, "sequential": {"at"}}[content["rule"]["name"]]
    if reading not in allowed:
        raise ValueError(f"{reading!r} is no reading of votes by rule {content['rule']}")
    if content.get("condition") and (derived.bounded or reading == "prediction"):
        raise ValueError(f"votes that had to be {content['condition']!r} bound no rival")
    label, *reals = (content[name] for name in ("label", "radius", "p_lower", "p_upper"))
    claims = [label, *([real(text) for text in column] for column in reals)]
    if {len(column) for column in claims} != {len(rows)}:
        raise ValueError("label, radius, p_lower and p_upper are not of one length")
    check = _CHECKS[reading]
    return [
        (row.index, check(derived, row, *claim)) for row, *claim in zip(rows, *claims, strict=True)
    ]


def _silent(label: int, radius: float) -> tuple[str, ...] | None:
    """What is wrong with an abstention; None if it is none."""
    if label != ABSTAIN:
        return None
    return () if radius <= 0 else (f"it abstains with a radius of {radius!r}",)


def _by_count(
    derived: _Derived, row: Row, label: int, radius: float, low: float, high: float
) -> tuple[str, ...]:
    found = list(derived.proved(row.successes, row.runner_up, row.n, low, high, radius))
    if (silent := _silent(label, radius)) is not None:
        return (*silent, *found)
    if label != row.chosen or not row.n0:
        found.append(f"the label is {label}, where {row.n0} votes select {row.chosen}")
    if not radius > 0:
        found.append(f"it names a label with a radius of {radius!r}")
    return tuple(found)


def _at_radius(
    derived: _Derived, row: Row, label: int, radius: float, low: float, high: float
) -> tuple[str, ...]:
    found = []
    asked = float(derived.reading["radius"])
    if low > 0 or high < 1 or label != ABSTAIN:
        if isnan(low) or not 0 < low < 1 or not derived.decided(row.successes, row.n, low):
            found.append(f"{row.successes} of {row.n} votes do not decide that p exceeds {low!r}")
        if not complement(exact(low)).proves_at_most(high):
            found.append(f"p_upper is {high!r}, below 1 - {low!r}")
    if (silent := _silent(label, radius)) is not None:
        return (*silent, *found)
    if label != row.chosen or not row.n0:
        found.append(f"the label is {label}, where {row.n0} votes select {row.chosen}")
    reach = derived.reach(exact(low)) if 0 < low < 1 else exact(0)
    if radius != asked:
        found.append(f"radius is {radius!r}, where {asked!r} was asked for")
    if not reach.proves_at_least(radius):
        found.append(_excess("radius", radius, reach))
    return tuple(found)


def _most_voted(
    derived: _Derived, row: Row, label: int, radius: float, low: float, high: float
) -> tuple[str, ...]:
    found = []
    if radius > 0 or low > 0 or high < 1 or isnan(radius + low + high):
        found.append("a prediction has no radius and no bounds")
    if label == ABSTAIN:
        return tuple(found)
    votes = sorted(row.counts.values(), reverse=True)
    first = row.counts.get(label, 0)
    if not votes or first != votes[0]:
        found.append(f"the label is {label}, which has not the most votes")
    else:
        p_value = arithmetic.top_two_p_value(first, votes[1] if len(votes) > 1 else 0)
        if not p_value.proves_at_most(derived.alpha):
            found.append(f"{first} votes are not ahead: p-value {p_value} at {derived.alpha!r}")
    return tuple(found)


_CHECKS: dict[str, Callable[..., tuple[str, ...]]] = {
    "radius": _by_count,
    "at": _at_radius,
    "prediction": _most_voted,
}


_READINGS = frozenset(_CHECKS)
