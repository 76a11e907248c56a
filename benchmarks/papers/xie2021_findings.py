"""What the numbers of ``benchmarks.papers.xie2021`` say: the paper's claims, checked, and its
figures, drawn."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.papers.recipe import monotone, verdict, word
from rsfl import bounds

__all__ = ["draw", "verdicts"]

Numbers: TypeAlias = dict[str, Any]
"""The numbers of a case as the recipe has saved them."""

# By figure: what is measured, whether it rises with the factor, and the claim.
CLAIMS: dict[str, tuple[tuple[str, bool, str], ...]] = {
    "sigma": (
        ("mean radius", True, "more training noise, larger radius"),
        ("accuracy", False, "more training noise, lower accuracy"),
    ),
    "poisoned": (("mean radius", False, "more poisoned samples, smaller radius"),),
    "gamma": (("mean radius", False, "larger scale, smaller radius"),),
    "attackers": (("mean radius", False, "more attackers, smaller radius"),),
    "rfa": (("mean radius", False, "more attackers under RFA, smaller radius"),),
    "clients": (("mean radius", True, "more clients, larger radius"),),
    "rounds": (("mean correct radius", True, "more rounds, more certified and correct"),),
    "models": (("mean radius", True, "more noisy models, larger radius"),),
    "alpha": (("mean radius", True, "smaller alpha, smaller radius"),),
}
SAMPLED = ("models", "alpha")  # say nothing to exact certificates
FACTORS = {
    "sigma": "sigma",
    "poisoned": "poisoned a batch",
    "gamma": "gamma",
    "attackers": "attackers R",
    "rfa": "attackers R",
    "clients": "clients N",
    "rounds": "rounds T",
    "models": "models M",
    "alpha": "alpha",
    "attacked": "t_adv",
}


def verdicts(found: Mapping[str, Sequence[Numbers]], certified: int) -> dict[str, str]:
    """Each claim on the clean test set, of ``certified`` samples: whether it holds, and the numbers
    that say so."""
    words: dict[str, str] = {}
    for figure, cases in found.items():
        for claim in CLAIMS.get(figure, ()):
            words |= _trend(figure, cases, certified, *claim)
    if voted := [case for cases in found.values() for case in cases if "published" in _ways(case)]:
        words |= _general(voted)
    if "rounds" in found:
        words["more rounds, same largest radius: published"] = _steady(
            found["rounds"], "largest radius", 0.001
        )
    if "attacked" in found:
        words["radius within 10 % whatever t_adv: published"] = _steady(
            found["attacked"], "mean radius", 0.1
        )
    if "rfa" in found and "attackers" in found:
        pairs = zip(found["rfa"], found["attackers"], strict=True)
        gains = [
            np.divide(*(_ways(case)["published"]["mean radius"] for case in pair)) for pair in pairs
        ]
        words["larger radius under RFA than under the mean, ratios: published"] = word(
            min(gains) > 1
        ) + _list(gains)
    for case in found.get("closeness", ()):
        at, after = f"t_adv = {case['attacked']}", case["distance"][case["attacked"] - 1 :]
        near, bound = after[0], case["sound"][case["attacked"] - 1]
        words[f"models come closer in every round after {at}"] = monotone(
            after, rising=False
        ) + _list([near, after[-1]])
        words[f"Eq. 20 bounds their distance at {at}"] = word(near <= case["published"]) + _list(
            [near, case["published"]]
        )
        holds = all(a <= b for a, b in zip(case["distance"], case["sound"], strict=True))
        words[f"our bound holds in every round from {at} on"] = word(holds) + _list([near, bound])
    for numbers in found.get("formula", ()):
        grown = [row[-1] / row[0] for row in numbers["radius"]]
        steady = grown[0] > 2 and grown[-1] < 1.01
        words["more rounds raise the radius at small rho / sigma only, factors"] = word(
            steady
        ) + _list(grown)
    return words


def _ways(case: Numbers, samples: str = "clean") -> dict[str, Numbers]:
    """What each certificate gives in a case; none for those that measure something else."""
    ways: dict[str, Numbers] = case.get(samples, {}).get("ways", {})
    return ways


def _list(values: Iterable[float]) -> str:
    return " (" + ", ".join(f"{value:.3g}" for value in values) + ")"


def _steady(cases: Sequence[Numbers], measure: str, slack: float) -> str:
    """Whether the published certificate's measure is the same in all cases, within a share of the
    largest."""
    values = [_ways(case)["published"][measure] for case in cases]
    return word(min(values) >= (1 - slack) * max(values)) + _list(values)


def _trend(
    figure: str, cases: Sequence[Numbers], certified: int, measure: str, rising: bool, claim: str
) -> dict[str, str]:
    """Whether a measure rises (falls) with the factor, for each certificate."""
    if measure == "accuracy":
        rates = np.array([case["clean"]["accuracy"] for case in cases])
        return {claim: _judged(rates, np.sqrt(rates * (1 - rates) / certified), rising=rising)}
    words = {}
    for way in ("published",) if figure in SAMPLED else _ways(cases[-1]):
        made = [ways[way] for case in cases if way in (ways := _ways(case))]
        values, errors = (
            np.array([one[key] for one in made]) for key in (measure, f"{measure}, error")
        )
        words[f"{claim}: {way}"] = _judged(values, errors, rising=rising)
    return words


def _judged(values: NDArray[np.float64], errors: NDArray[np.float64], *, rising: bool) -> str:
    """The verdict on the steps between neighbouring values; from 0 to 0 there is none."""
    steps, slack = np.diff(values) * (1 if rising else -1), np.hypot(errors[1:], errors[:-1])
    some = (values[1:] > 0) | (values[:-1] > 0)
    return verdict(zip(steps[some], slack[some], strict=True)) + _list(values)


def _general(cases: Sequence[Numbers]) -> dict[str, str]:
    """What is said of all the cases with votes."""
    lost = max(
        case["clean"]["accuracy"] - _ways(case)["published"]["certified accuracy"][0]
        for case in cases
    )
    means = [
        [_ways(case, samples)["published"]["mean radius"] for case in cases]
        for samples in ("clean", "backdoored")
    ]
    pairs = [pair for pair in zip(*means, strict=True) if any(pair)]
    apart = max((abs(one - other) / max(one, other) for one, other in pairs), default=0.0)
    norm, rho = (
        cases[0]["input norm"],
        np.dot(cases[0]["case"]["clip"], [1, cases[0]["case"]["attacked"]]),
    )
    # ||dp|| <= ||W|| ||dx|| / 2 and ||p - y|| <= sqrt(2), for the gradient (p - y) (x, 1)'.
    ratio = (2**0.5 + norm * rho / 2) / float(bounds.logistic_lipschitz(rho))
    return {
        "voting costs at most .05 of the accuracy": word(lost <= 0.05) + _list([lost]),
        "on backdoored samples the mean radius is within 10 %": word(apart <= 0.1) + _list([apart]),
        "inputs have norm at most 1, as Lemma 1 needs": word(norm <= 2**0.5)
        + f" (||(x, 1)|| is up to {norm:.3g}; a constant for that divides the published radii by "
        f"{ratio:.3g})",
    }


def draw(figure: str, cases: Sequence[Numbers], path: Path) -> None:
    """A figure, as PNG."""
    drawing = {"closeness": _closeness, "formula": _formula}.get(figure)
    picture = drawing(cases) if drawing is not None else _curves(figure, cases)
    picture.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=80)


def _curves(figure: str, cases: Sequence[Numbers]) -> Figure:
    """Certified accuracy (lines) and rate (dashes) by backdoor norm: a column a certificate, a row
    a test set."""
    ways = ["published"] if figure in SAMPLED else list(_ways(cases[-1]))
    picture = Figure(figsize=(max(5.0, 2.7 * len(ways)), 4.8))
    grid = picture.subplots(2, len(ways), sharex=True, sharey=True, squeeze=False)
    radii = np.array(cases[0]["radii"])
    for row, samples in zip(grid, ("clean", "backdoored"), strict=True):
        for axis, way in zip(row, ways, strict=True):
            for number, case in enumerate(cases):
                if (curve := _ways(case, samples).get(way)) is not None:
                    label = f"{case['case']['attackers' if figure == 'rfa' else figure]:g}"
                    axis.plot(
                        radii[1:], curve["certified accuracy"][1:], color=f"C{number}", label=label
                    )
                    axis.plot(radii[1:], curve["rate"][1:], "--", color=f"C{number}", linewidth=0.8)
        row[0].set_ylabel(f"{samples}\naccuracy, - - rate")
    rates = np.array(
        [_ways(case)[way]["rate"][1:] for case in cases for way in ways if way in _ways(case)]
    )
    falls = np.flatnonzero(
        ((rates > 0) & (rates < 0.99 * rates[:, :1]) & (rates[:, :1] > 0.01)).any(axis=0)
    )
    if len(falls):
        grid[0, 0].set_xlim(radii[max(1, falls[0] - 2)], radii[min(len(radii) - 1, falls[-1] + 4)])
    grid[0, 0].set(xscale="log", ylim=(0, 1.02))
    for axis, way in zip(grid[0], ways, strict=True):
        axis.set_title(way)
    grid[0, -1].legend(title=FACTORS[figure], fontsize=7, title_fontsize=7)
    for axis in grid[1]:
        axis.set_xlabel("backdoor norm")
    return picture


def _closeness(found: Sequence[Numbers]) -> Figure:
    """Distance by round (lines), our bound (dots) and the published one at t_adv (cross)."""
    picture = Figure(figsize=(7, 3.4))
    axis = picture.subplots()
    for case in found:
        index = np.arange(1, len(case["distance"]) + 1)
        after = index >= case["attacked"]
        (line,) = axis.plot(
            index[after], np.array(case["distance"])[after], label=f"t_adv = {case['attacked']}"
        )
        axis.plot(index[after], np.array(case["sound"])[after], ":", color=line.get_color())
        axis.plot([case["attacked"]], [case["published"]], "x", color=line.get_color())
    axis.set(yscale="log", xlabel="round", ylabel="l2 distance, ... our bound, x Eq. 20")
    axis.legend()
    return picture


def _formula(found: Sequence[Numbers]) -> Figure:
    """The published radius over the rounds, a line a ratio of clip radius to noise."""
    picture = Figure(figsize=(7, 3.4))
    axis = picture.subplots()
    for ratio, radius in zip(found[0]["ratios"], found[0]["radius"], strict=True):
        axis.plot(found[0]["rounds"], radius, "o-", label=f"rho / sigma = {ratio:g}")
    axis.set(yscale="log", xlabel="rounds T", ylabel="published radius")
    axis.legend(fontsize=7)
    return picture
