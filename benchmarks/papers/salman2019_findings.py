"""What the numbers of ``benchmarks.papers.salman2019`` say: the paper's claims, checked, its tables
and figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.papers.recipe import difference, verdict, word
from benchmarks.papers.salman2019_plan import (
    Attacked,
    Case,
    Scale,
    grid,
    largest,
    quarters,
    smooth_adv,
    under_attack,
)
from rsfl import bounds

LINF = 2 / 255
PUBLISHED: Mapping[
    str, Mapping[float, int]
] = {  # Table 2, in %: shown beside our figures, for orientation
    "noise": {0.25: 61, 0.5: 43, 0.75: 32, 1.0: 22, 1.25: 17, 1.5: 13, 1.75: 10, 2.0: 7, 2.25: 4},
    "SmoothAdv": {
        0.25: 73,
        0.5: 58,
        0.75: 48,
        1.0: 38,
        1.25: 33,
        1.5: 29,
        1.75: 24,
        2.0: 18,
        2.25: 16,
    },
}

Found = Mapping[Case | Attacked, Mapping[str, Any]]
Hits = NDArray[Any]
"""Whether, or in which share of cases, each test image is what is asked for."""


@dataclass(frozen=True)
class Gap:
    """By how much one thing has more hits than another on the same images, and its standard
    error."""

    value: float
    error: float

    @classmethod
    def between(cls, first: Sequence[Hits], second: Sequence[Hits]) -> "Gap":
        """From the hits of each seed."""
        return cls(*difference(first, second))

    def __str__(self) -> str:
        return f"{self.value:+.3f} +- {self.error:.3f}"


def said(gaps: Mapping[str, Gap]) -> str:
    """The verdict on a claim that gaps are positive, and the numbers."""
    heading = verdict((gap.value, gap.error) for gap in gaps.values())
    return f"{heading} ({', '.join(f'{name}: {gap}' for name, gap in gaps.items())})"


def hits(found: Found, case: Case, radius: float) -> Hits:
    """Which images are certified at a radius."""
    return np.asarray(found[case]["reach"]) >= radius


def accuracies(found: Found, case: Case, radii: Iterable[float]) -> NDArray[np.float64]:
    """Certified accuracy at radii."""
    return np.array([hits(found, case, radius).mean() for radius in radii])


def envelope(found: Found, cases: Sequence[Case], radii: Iterable[float]) -> NDArray[np.float64]:
    """The best certified accuracy at each radius, chosen with the test images' help."""
    return np.array([hits(found, best(found, cases, radius), radius).mean() for radius in radii])


def best(found: Found, cases: Sequence[Case], radius: float) -> Case:
    """The case with the highest certified accuracy at a radius."""
    return max(cases, key=lambda case: float(hits(found, case, radius).mean()))


def gaps_of_best(
    found: Found, above: Sequence[Case], below: Sequence[Case], radii: Sequence[float]
) -> dict[str, Gap]:
    """Between the best of two families at each radius."""
    return {
        f"r = {r:.3g}": Gap.between(
            [hits(found, best(found, above, r), r)], [hits(found, best(found, below, r), r)]
        )
        for r in radii
    }


def families(scale: Scale) -> dict[str, list[Case]]:
    """The models trained with noise, and those with SmoothAdv."""
    return {way: [case for case in grid(scale) if case.way.startswith(way)] for way in PUBLISHED}


def table2(scale: Scale) -> list[float]:
    """The radii of Table 2 that the votes can certify."""
    return [r for r in PUBLISHED["noise"] if r < largest(scale.sigmas[-1], scale.setting.n)]


def judged_envelopes(scale: Scale, found: Found) -> dict[str, str]:
    """Table 2, Figure 1 and Table 3."""
    n, dim = scale.setting.n, 64 if scale.setting.data == "digits" else 3072
    noise, ours = families(scale).values()
    radii = table2(scale)
    verdicts = {
        "the best of SmoothAdv certifies more than the best of noise": said(
            gaps_of_best(found, ours, noise, radii)
        )
    }
    for case in noise:
        of_sigma = [other for other in ours if other.sigma == case.sigma]
        gaps = gaps_of_best(found, of_sigma, [case], quarters(case.sigma, n)[1:])
        verdicts[f"so it does at sigma = {case.sigma:g}"] = said(gaps)
    costs = {
        f"sigma = {case.sigma:g}": Gap.between(
            [hits(found, case, 0.0)], [hits(found, smooth_adv(scale, case.sigma), 0.0)]
        )
        for case in noise
    }
    verdicts["SmoothAdv costs accuracy at r = 0"] = said(costs)
    low, high, far = noise[0], noise[-1], largest(noise[0].sigma, n)
    traded = {
        "r = 0, low - high": Gap.between([hits(found, low, 0.0)], [hits(found, high, 0.0)]),
        f"r = {far:.3g}, high - low": Gap.between(
            [hits(found, high, far)], [hits(found, low, far)]
        ),
    }
    verdicts["more noise certifies larger radii and fewer small ones"] = said(traded)

    def at_linf(case: Case) -> Hits:
        reach = np.asarray(found[case]["reach"])
        return (reach >= 0) & (np.asarray(bounds.linf_radius(reach.clip(min=0), dim)) >= LINF)

    first, second = (
        max(cases, key=lambda case: float(at_linf(case).mean())) for cases in (ours, noise)
    )
    gap = Gap.between([at_linf(first)], [at_linf(second)])
    verdicts["SmoothAdv certifies more in linf at 2/255, by conversion"] = (
        f"{said({'2/255': gap})}: {at_linf(first).mean():.3f} and {at_linf(second).mean():.3f}, "
        f"accuracy {hits(found, first, 0.0).mean():.3f} and {hits(found, second, 0.0).mean():.3f}"
    )
    return verdicts


def compared(found: Found, first: str, second: str, radii: Sequence[float]) -> dict[str, Gap]:
    """Two ways of training, over the seeds."""
    of_way = [
        [case for case in found if isinstance(case, Case) and case.way == way]
        for way in (first, second)
    ]
    return {
        f"r = {r:.3g}": Gap.between(*([hits(found, case, r) for case in cases] for cases in of_way))
        for r in radii
    }


def judged_training(found: Found, sigma: float, n: int) -> dict[str, str]:
    """What ways of training come to, on average over the seeds."""
    there = {case.way for case in found if isinstance(case, Case)}
    radii = quarters(sigma, n)[1:]
    claims = [("SmoothAdv-PGD", other) for other in ("noise", "vanilla", "vanilla + noise")]
    claims += [("SmoothAdv-DDN", "noise"), ("noise", "vanilla"), ("noise", "plain")]
    return {
        f"{first} certifies more than {second}": said(compared(found, first, second, radii))
        for first, second in claims
        if {first, second} <= there
    }


def judged_samples(scale: Scale, found: Found) -> dict[str, str]:
    """Appendix C.2."""
    one, most = (
        smooth_adv(scale, scale.sigmas[1], samples=m) for m in (scale.samples[0], scale.samples[-1])
    )
    gaps = gaps_of_best(found, [most], [one], quarters(scale.sigmas[1], scale.setting.n)[1:])
    return {
        f"training with m = {most.samples} certifies more than with m = {one.samples}": said(gaps)
    }


def judged_epsilon(scale: Scale, found: Found) -> dict[str, str]:
    """Appendix C.3."""
    radii = quarters(scale.sigmas[1], scale.setting.n)
    low, high = (
        smooth_adv(scale, scale.sigmas[1], epsilon=e)
        for e in (scale.epsilons[0], scale.epsilons[-1])
    )
    change = f"epsilon = {high.epsilon:g} for {low.epsilon:g}"
    return {
        f"{change}: less accuracy at r = 0": said(gaps_of_best(found, [low], [high], radii[:1])),
        f"{change}: more at a large radius": said(gaps_of_best(found, [high], [low], radii[3:])),
    }


def judged_attack(scale: Scale, found: Found) -> dict[str, str]:
    """Figure 3 and Appendices C.4, C.5 and C.6, and Figure 1's remark on the empirical accuracy of
    noise training."""
    items = under_attack(scale)
    most, n, few = scale.m_test[-1], scale.predicted, scale.setting.attacked

    def left(attack: str, m: int, **settings: Any) -> Hits:
        """Share of the attacked settings in which an image stays right."""
        asked = {"attack": attack, "samples": m, "n": n} | settings
        same = [
            item
            for item in items
            if all(getattr(item, name) == value for name, value in asked.items())
        ]
        shares: Hits = np.mean([found[item]["right"] for item in dict.fromkeys(same)], axis=0)
        return shares

    def one(attack: str, votes: int) -> Mapping[str, Any]:
        return found[replace(items[-1], attack=attack, n=votes)]

    ours = families(scale)["SmoothAdv"]
    above = {}
    for r in scale.radii:
        certified = hits(found, best(found, ours, r), r)[:few]
        empirical = max(
            (left("SmoothAdv", most, epsilon=r, case=Case("noise", s)) for s in scale.sigmas),
            key=np.mean,
        )
        above[f"r = {r:.3g}"] = Gap.between([certified], [empirical])
    refuted = sum(
        numbers["refuted"] for item, numbers in found.items() if isinstance(item, Attacked)
    )
    many, fewest = one("SmoothAdv", scale.votes[-1]), one("SmoothAdv", scale.votes[0])
    return {
        f"an attack of m = {scale.m_test[0]} is weaker than PGD on the network": said(
            {"left": Gap.between([left("SmoothAdv", scale.m_test[0])], [left("PGD", 1)])}
        ),
        f"an attack of m = {most} is stronger than one of m = {scale.m_test[0]}": said(
            {"left": Gap.between([left("SmoothAdv", scale.m_test[0])], [left("SmoothAdv", most)])}
        ),
        "no attack refutes a certificate": f"{word(refuted == 0)} ({refuted} of "
        f"{len(dict.fromkeys(items)) * few})",
        "SmoothAdv certifies more than noise training has under attack": said(above),
        f"n = {scale.votes[-1]} votes predict better than {scale.votes[0]}": said(
            {"right": Gap.between([np.array(many["right"])], [np.array(fewest["right"])])}
        )
        + f": abstained {many['abstained']:.3f} and {fewest['abstained']:.3f}",
        f"the one-point attack of m = {most} is weaker than SmoothAdv-PGD of as many": said(
            {
                "left": Gap.between(
                    [np.array(one("one-point", n)["right"])],
                    [np.array(one("SmoothAdv", n)["right"])],
                )
            }
        ),
    }


def judged_data(scale: Scale, found: Found) -> dict[str, str]:
    """Section 4.2."""
    sigma = scale.sigmas[1]
    few, *more = (
        smooth_adv(scale, sigma, data=d) for d in ("few", "pre-training", "self-training", "both")
    )
    return {
        f"{'pre-training and self-training' if case.data == 'both' else case.data} "
        f"certifies more": said(
            gaps_of_best(found, [case], [few], quarters(sigma, scale.setting.n)[1:])
        )
        for case in more
    }


def judged_digits(scale: Scale, found: Found) -> dict[str, str]:
    """The ways of training again, and the claims of Chen et al. 2021 on the one-point estimator."""
    verdicts = {f"digits: {k}": v for k, v in judged_training(found, 0.25, scale.digits.n).items()}
    seconds = {
        way: min(
            found[case]["seconds"] for case in found if isinstance(case, Case) and case.way == way
        )
        for way in ("SmoothAdv-PGD", "one-point")
    }
    faster = seconds["SmoothAdv-PGD"] / seconds["one-point"]
    gaps = compared(found, "one-point", "SmoothAdv-PGD", quarters(0.25, scale.digits.n)[1:])
    as_much = verdict((-abs(gap.value), gap.error) for gap in gaps.values())
    verdicts["digits: one-point trains 2 to 3 times faster"] = (
        f"{word(2 <= faster <= 3)} ({faster:.2f} times)"
    )
    shown = ", ".join(f"{name}: {gap}" for name, gap in gaps.items())
    verdicts["digits: one-point certifies as much"] = f"{as_much} ({shown})"
    return verdicts


def name(item: Case | Attacked) -> str:
    """An item in a table or legend."""
    if isinstance(item, Attacked):
        draws = "" if item.attack == "PGD" else f", m = {item.samples}"
        model = f"{item.case.way}, sigma = {item.case.sigma:g}"
        return f"{item.attack}{draws}, r = {item.epsilon:.3g}, n = {item.n} on {model}"
    budget = f", epsilon = {item.epsilon:.3g}" if item.epsilon else ""
    draws = f", m = {item.samples}" if item.way.startswith("SmoothAdv") else ""
    data = "" if item.data == "all" else f", {item.data}"
    return f"{item.way}, sigma = {item.sigma:g}{budget}{draws}{data}, seed {item.seed}"


def table(figure: str, scale: Scale, found: Found) -> list[str]:
    """All numbers of a figure: certified accuracy at quarters of the largest radius, accuracy under
    attack."""
    n = (scale.digits if figure == "digits" else scale.setting).n
    lines = [
        f"\n{figure}: accuracy certified at 0, 1/4, 1/2, 3/4 of the largest radius; right and "
        f"abstained if attacked"
    ]
    for item, numbers in found.items():
        if isinstance(item, Case):
            shown = "".join(f"{a:8.3f}" for a in accuracies(found, item, quarters(item.sigma, n)))
            lines.append(f"{name(item):78}{shown}   {1e3 * numbers['seconds']:.0f} ms an epoch")
        else:
            lines.append(f"{name(item):78}{mean(numbers['right']):8.3f}{numbers['abstained']:8.3f}")
    if figure == "envelopes":
        radii = table2(scale)
        lines.append(
            "best of the models at r = " + ", ".join(f"{r:g}" for r in radii) + "; in Table 2"
        )
        for way, family in families(scale).items():
            ours = "".join(f"{a:8.3f}" for a in envelope(found, family, radii))
            lines.append(
                f"{way:20}{ours};" + "".join(f"{PUBLISHED[way][r] / 100:8.2f}" for r in radii)
            )
    return lines


def draw(figure: str, scale: Scale, found: Found, path: Path) -> None:
    """A figure from its numbers."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.4))
    if figure == "envelopes":
        draw_envelopes(scale, found, drawing)
    elif figure == "attack":
        draw_attack(scale, found, drawing)
    else:
        draw_curves(figure, scale, found, drawing)
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)


def draw_envelopes(scale: Scale, found: Found, drawing: Any) -> None:
    """Figure 1: over all models, by sigma, and one model a sigma that was chosen beforehand."""
    n = scale.setting.n
    whole, each, single = drawing.subplots(1, 3, sharey=True)
    for (way, family), style in zip(families(scale).items(), ("--", "-"), strict=True):
        radii = np.linspace(0, largest(scale.sigmas[-1], n), 200)
        whole.plot(radii, envelope(found, family, radii), style, color="black", label=way)
        for number, sigma in enumerate(scale.sigmas):
            radii, chosen = np.linspace(0, largest(sigma, n), 200), smooth_adv(scale, sigma)
            of_sigma = [case for case in family if case.sigma == sigma]
            label = f"{way}, {sigma:g}"
            each.plot(
                radii, envelope(found, of_sigma, radii), style, color=f"C{number}", label=label
            )
            lone = chosen if way == "SmoothAdv" else of_sigma[0]
            single.plot(
                radii, accuracies(found, lone, radii), style, color=f"C{number}", label=label
            )
    whole.set(title="best of all models", ylabel="certified accuracy")
    each.set(title="best of each sigma")
    single.set(title=f"one model, epsilon = {scale.epsilon:g}")
    for axis in (whole, each, single):
        axis.set(xlabel="l2 radius", ylim=(0, None))
        axis.legend(fontsize=7)


def draw_attack(scale: Scale, found: Found, drawing: Any) -> None:
    """Figure 3, and accuracy under attack over the votes of the prediction."""
    items, few, n = under_attack(scale), scale.setting.attacked, scale.predicted
    over_radii, over_votes = drawing.subplots(1, 2)
    kinds = [("PGD", 1), *(("SmoothAdv", m) for m in scale.m_test)]
    for number, (attack, m) in enumerate(kinds):
        of_kind = [item for item in items if (item.attack, item.samples, item.n) == (attack, m, n)]
        shown = [
            max(mean(found[item]["right"]) for item in of_kind if item.epsilon == radius)
            for radius in scale.radii
        ]
        label = "PGD on the network" if attack == "PGD" else f"SmoothAdv, m = {m}"
        over_radii.plot(
            scale.radii,
            shown,
            "o-" if attack == "SmoothAdv" else "s--",
            color=f"C{number}",
            label=label,
        )
    certified = [
        max(hits(found, Case("noise", s), r)[:few].mean() for s in scale.sigmas)
        for r in scale.radii
    ]
    over_radii.plot(scale.radii, certified, "k^-", label="certified")
    over_radii.set(
        xlabel="l2 radius", ylabel="accuracy", title="noise training under attack", ylim=(0, None)
    )
    over_radii.legend(fontsize=7)
    attacked = [found[replace(items[-1], attack="SmoothAdv", n=votes)] for votes in scale.votes]
    over_votes.plot(
        scale.votes, [mean(numbers["right"]) for numbers in attacked], "o-", label="right"
    )
    over_votes.plot(
        scale.votes, [numbers["abstained"] for numbers in attacked], "o:", label="abstained"
    )
    over_votes.plot([n], [mean(found[items[-1]]["right"])], "s", label="right, one-point attack")
    over_votes.set(xscale="log", xlabel="votes n", ylim=(0, 1))
    over_votes.set_title(f"r = {items[-1].epsilon:g}, m = {items[-1].samples}")
    over_votes.set_xticks(scale.votes, [str(n) for n in scale.votes])
    over_votes.minorticks_off()
    over_votes.legend(fontsize=7)


def draw_curves(figure: str, scale: Scale, found: Found, drawing: Any) -> None:
    """Certified accuracy by radius, the mean of the seeds and a band from the least to the most."""
    setting = scale.digits if figure == "digits" else scale.setting
    cases = [case for case in found if isinstance(case, Case)]
    radii = np.linspace(0, largest(cases[0].sigma, setting.n), 200)
    axis = drawing.subplots()
    for case in cases:
        if case.seed > 0:
            continue
        rows = [
            accuracies(found, other, radii) for other in cases if replace(other, seed=0) == case
        ]
        label = {
            "samples": f"m = {case.samples}",
            "epsilon": f"epsilon = {case.epsilon:g}",
            "data": case.data,
        }
        (line,) = axis.plot(radii, np.mean(rows, axis=0), label=label.get(figure, case.way))
        axis.fill_between(
            radii,
            np.min(rows, axis=0),
            np.max(rows, axis=0),
            color=line.get_color(),
            alpha=0.2,
            lw=0,
        )
    axis.set(
        xlabel="l2 radius",
        ylabel="certified accuracy",
        ylim=(0, None),
        title=f"sigma = {cases[0].sigma:g}",
    )
    axis.legend(fontsize=8)


def judged(figure: str, scale: Scale, found: Found) -> dict[str, str]:
    """The verdicts of a figure."""
    if figure == "training":
        return judged_training(found, scale.sigmas[1], scale.setting.n)
    of_figure: Mapping[str, Callable[[Scale, Found], dict[str, str]]] = {
        "envelopes": judged_envelopes,
        "samples": judged_samples,
        "epsilon": judged_epsilon,
        "attack": judged_attack,
        "data": judged_data,
        "digits": judged_digits,
    }
    return of_figure[figure](scale, found)
