"""CRFL's experiments on MNIST: what each setting does to the certified backdoor, as published and as proved here.

``python -m benchmarks.papers.xie2021 --data DIR --scale paper`` trains logistic regression as Table 1 of Xie et al.
2021 has it, one factor changed at a time, and certifies test images, clean and with the trigger, in four ways:

- published: Corollary 1 on M noisy models; its statement is about a clean run whose attackers scale their updates too;
- pattern: exact margins against the same threat, without a guarantee for changed labels, as Lemma 1 is used there;
- labels: the poisoned samples' labels change as well, as they do in the experiment;
- honest: and the attackers' scaling is part of the attack: compared with a run in which there is none.

Taken from the paper where its code differs: t_adv = 10, gamma = 10 and R = 1 everywhere but for t_adv (the code's file
has 70, 100 and 2), no cap on rho_t, L_Z from rho at t_adv. Taken from the code: the trigger is four pixels, and images
are in [0, 1] without normalisation. Other than both: votes that choose the label are not those that bound its
probability, so n0 = 100 models more; the first images of the test set in order; attackers scale only when they attack.
Each case's numbers are a file of their own in ``--out``: what is there is not computed again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.papers.recipe import mnist, once, options, verdict, word
from rsfl import bounds, demo, fed, runs
from rsfl.fed import poison

PATTERN, TARGET, SEED = 0.1, 0, 0
RADII = np.concatenate([[0.0], np.geomspace(1e-6, 10, 141)])
SOUND = {
    "pattern": {"flips": False, "comparator": "scaled"},
    "labels": {"flips": True, "comparator": "scaled"},
    "honest": {"flips": True, "comparator": "clean"},
}


@dataclass(frozen=True)
class Case:
    """One run and how it is certified; the defaults are the paper's."""

    sigma: float = 0.01
    poisoned: int = 5
    gamma: float = 10.0
    attackers: int = 1
    rule: str = "mean"
    clients: int = 20
    rounds: int = 100
    attacked: int = 10
    lipschitz_round: int | None = None
    models: int = 1000
    alpha: float = 0.001

    @property
    def training(self) -> "Case":
        """The case without what matters for certification alone."""
        return replace(self, lipschitz_round=None, models=1000, alpha=0.001)


@dataclass(frozen=True)
class Scale:
    """How much of everything, and the values of the factors that depend on it."""

    images: int
    base: Case
    clients: tuple[int, ...]
    rounds: tuple[int, ...]
    attacked: tuple[int, ...]
    closeness: tuple[int, ...]


SCALES = {
    "smoke": Scale(100, Case(clients=4, rounds=4, attacked=2, models=100), (2, 4), (3, 4), (1, 2), (2,)),
    "small": Scale(1000, Case(rounds=20, attacked=5), (10, 20, 40), (10, 15, 20), (3, 5, 10), (5, 10)),
    "paper": Scale(5000, Case(), (10, 20, 40), (20, 50, 100), (10, 20, 40, 43, 44), (20, 40, 60)),
}


def figures(scale: Scale) -> dict[str, list[Case]]:
    """The cases of each figure, in the order of its factor. The paper names few of its values: these are ours."""
    base = scale.base
    strong = replace(base, gamma=100.0, attackers=2, lipschitz_round=scale.attacked[-1])
    return {
        "sigma": [replace(base, sigma=v) for v in (0.005, 0.01, 0.02)],
        "gamma": [replace(base, gamma=v) for v in (10.0, 50.0, 100.0)],
        "attackers": [replace(base, attackers=v) for v in (1, 2)],
        "rounds": [replace(base, rounds=v) for v in scale.rounds],
        "attacked": [replace(strong, attacked=v) for v in scale.attacked],
        "models": [replace(base, models=v * base.models // 10) for v in (2, 5, 10)],
        "alpha": [replace(base, alpha=v) for v in (0.0001, 0.001, 0.01)],
        "poisoned": [replace(base, poisoned=v) for v in (5, 10, 20)],
        "clients": [replace(base, clients=v) for v in scale.clients],
        "rfa": [replace(base, rule="rfa", attackers=v) for v in (1, 2)],
    }


CLAIMS = {
    "sigma": (True, "more training noise, larger radius"),
    "gamma": (False, "larger scale, smaller radius"),
    "attackers": (False, "more attackers, smaller radius"),
    "rounds": (True, "more rounds, more certified"),
    "models": (True, "more noisy models, larger radius"),
    "alpha": (True, "smaller alpha, smaller radius"),
    "poisoned": (False, "more poisoned samples, smaller radius"),
    "clients": (True, "more clients, larger radius"),
    "rfa": (False, "under RFA, more attackers, smaller radius"),
}


def rho(index: int) -> float:
    """The clip radius of a round."""
    return 0.1 * index + 2


class Experiment:
    """The data, and runs on it."""

    def __init__(self, scale: str, data: Path, device: str) -> None:
        self.scale = SCALES[scale]
        parts = demo.digits() if scale == "smoke" else mnist(data)
        x, y, test_x, test_y = (part.to(device) for part in parts)
        self.x, self.y, self.labels = x.double(), y, test_y[: self.scale.images]
        self.pattern = poison.pixel_patch(x.shape[1:], PATTERN).to(device)
        clean = test_x[: self.scale.images].double()
        self.tests = {"clean": clean, "backdoored": clean + self.pattern}

    def run(self, case: Case, *, honest: bool = False, **settings: Any) -> fed.Result:
        """The federated run of a case; without its attack if ``honest``."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(self.x[0].numel(), 10)).to(self.x)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        parts = fed.partition.equal(len(self.x), case.clients, seed=SEED)
        members = fed.clients(self.x, self.y, parts, fed.SGD(lr=0.001, batch_size=100))
        rule = fed.Mean() if case.rule == "mean" else fed.GeometricMedian()
        attack = fed.Attack(
            rounds=[case.attacked],
            data=poison.Backdoor(self.pattern, TARGET, per_batch=case.poisoned),
            update=poison.Scale(case.gamma),
        )
        server = fed.Server(model, members, aggregate=rule, clip=rho, noise=case.sigma, seed=SEED)
        attacks = {} if honest else dict.fromkeys(range(case.attackers), attack)
        return server.run(case.rounds, attacks=attacks, **settings)

    def threat(self, case: Case, **settings: Any) -> bounds.Threat:
        """The attack as certificates are told of it."""
        return bounds.Threat(
            "feature",
            clients=range(case.attackers),
            rounds=[case.attacked],
            norm=PATTERN,
            per_batch=case.poisoned,
            scale=case.gamma,
            **settings,
        )

    def certified(self, case: Case, result: fed.Result, x: Tensor) -> Iterator[tuple[str, fed.PoisoningCertificate]]:
        """The certificates of a run, each with backdoor norms as radii."""
        published = fed.certify(
            result.model,
            x,
            result.ledger,
            self.threat(case),
            method="published",
            confidence="hoeffding",
            sigma=case.sigma,
            n=case.models,
            alpha=case.alpha,
            lipschitz=None
            if case.lipschitz_round is None
            else float(bounds.logistic_lipschitz(rho(case.lipschitz_round))),
        )
        yield "published", fed.largest_backdoors(published, result.ledger)
        if case.rule != "mean":
            return  # the theorem needs fixed weights
        for name, settings in SOUND.items():
            found = fed.certify(result.model, x, result.ledger, self.threat(case, **settings))
            yield name, fed.largest_backdoors(found, result.ledger)

    def measured(self, case: Case, result: fed.Result) -> dict[str, Any]:
        """All the numbers of a case."""
        numbers: dict[str, Any] = {"case": asdict(case)}
        truth = self.labels.cpu().numpy()
        for name, x in self.tests.items():
            numbers[name] = {"accuracy": fed.accuracy(result.model, x, self.labels)}
            for way, found in self.certified(case, result, x):
                numbers[name][way] = {
                    "mean radius": float(np.mean(found.radius.cpu().numpy())),
                    "largest radius": float(found.radius.max()),
                    "rate": np.asarray(runs.certified_rate(found, RADII)).tolist(),
                    "certified accuracy": np.asarray(runs.certified_accuracy(found, truth, RADII)).tolist(),
                }
        return numbers

    def path(self, case: Case, *, honest: bool = False) -> tuple[list[Tensor], fed.Ledger]:
        """The parameters after each round, before the noise, and the ledger."""
        models: list[Tensor] = []

        def keep(model: nn.Module) -> dict[str, float]:
            models.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
            return {}

        return models, self.run(case, honest=honest, evaluate=keep, progress=False).ledger

    @cached_property
    def clean_path(self) -> list[Tensor]:
        """The parameters after each round of the run without an attack, which all closeness runs share."""
        return self.path(self.scale.base, honest=True)[0]

    def closeness(self, attacked: int) -> dict[str, Any]:
        """Distance of a backdoored run with model replacement from a clean one, by round, and what bounds it."""
        case = replace(self.scale.base, gamma=float(self.scale.base.clients), attacked=attacked)
        poisoned, ledger = self.path(case)
        clean = self.clean_path
        rounds, threat = ledger.rounds, self.threat(case)
        sound = [
            bounds.deviation(rounds[:t], threat).value if t >= attacked else 0.0 for t in range(1, len(rounds) + 1)
        ]
        one = rounds[attacked - 1].participants[0]
        attacker = bounds.Attacker(
            weight=one.weight,
            scale=case.gamma,
            steps=len(one.batch_sizes),
            lr=one.learning_rate,
            poison_fraction=case.poisoned / min(one.batch_sizes),
        )
        lipschitz = float(bounds.logistic_lipschitz(rho(attacked)))
        return {
            "attacked": attacked,
            "distance": [float((a - b).norm()) for a, b in zip(poisoned, clean, strict=True)],
            "sound": sound,
            "published divergence": [
                bounds.crfl_divergence(
                    PATTERN,
                    attackers=[attacker],
                    lipschitz=lipschitz,
                    sigma=case.sigma,
                    later=[(rho(s), case.sigma) for s in range(attacked + 1, t + 1)],
                )
                for t in range(attacked, case.rounds + 1)
            ],
        }


def formula() -> dict[str, Any]:
    """Figure 9b: the published radius with p_A = .7 and p_B = .1, over rho / sigma and the rounds."""
    attacker = bounds.Attacker(weight=1 / 20, scale=10.0, steps=30, lr=0.001, poison_fraction=0.05)
    ratios, rounds = [1.0, 2.0, 3.0, 4.0, 6.0, 10.0], [10, 20, 50, 100, 200]
    radius = [
        [
            float(
                bounds.crfl_radius(
                    0.7,
                    0.1,
                    attackers=[attacker],
                    lipschitz=float(bounds.logistic_lipschitz(rho(10))),
                    sigma=0.01,
                    later=[(ratio * 0.01, 0.01)] * (t - 10),
                )
            )
            for t in rounds
        ]
        for ratio in ratios
    ]
    return {"ratios": ratios, "rounds": rounds, "radius": radius}


def name(case: Case) -> str:
    """The file of a case: short, and another one for any other case."""
    return sha256(json.dumps(asdict(case)).encode()).hexdigest()[:12] + ".json"


def verdicts(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Each claim on the clean test set, by certificate: agrees or differs, and the numbers (mean radii) it rests on."""
    words = {}
    for figure, cases in found.items():
        if figure in CLAIMS:
            rising, claim = CLAIMS[figure]
            # Exact certificates sample nothing: M and alpha say nothing to them.
            for way in ("published",) if figure in ("models", "alpha") else tuple(cases[0]["clean"])[1:]:
                means = [case["clean"][way]["mean radius"] for case in cases]
                shown = ", ".join(f"{value:.3g}" for value in means)
                words[f"{claim}: {way}"] = (
                    verdict(means, rising=rising) if any(means) else "says nothing"
                ) + f" ({shown})"
    if "attacked" in found:
        means = [case["clean"]["published"]["mean radius"] for case in found["attacked"]]
        steady = min(means) > 0.9 * max(means)
        words["radius within 10 % whatever t_adv: published"] = (
            word(steady) + f" ({min(means):.3g} to {max(means):.3g})"
        )
    for case in found.get("closeness", []):
        after = case["distance"][case["attacked"] - 1 :]
        words[f"models come closer after t_adv = {case['attacked']}"] = (
            verdict(after, rising=False) + f" ({after[0]:.4g} to {after[-1]:.4g}; sound bound {case['sound'][-1]:.3g})"
        )
    for numbers in found.get("formula", []):
        grown = {ratio: row[-1] / row[0] for ratio, row in zip(numbers["ratios"], numbers["radius"], strict=True)}
        words["more rounds raise the radius only at small rho / sigma"] = word(
            grown[1.0] > 2 and grown[10.0] < 1.01
        ) + (f" (times {grown[1.0]:.3g} at 1, {grown[10.0]:.3g} at 10)")
    return words


def draw(figure: str, cases: list[dict[str, Any]], path: Path) -> None:
    """Certified accuracy (lines) and rate (dashes) by backdoor norm, published beside sound."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.4))
    axes = drawing.subplots(1, 3, sharey=True)
    for axis, way in zip(axes, ("published", "pattern", "labels"), strict=True):
        for case in cases:
            if way not in case["clean"]:
                continue
            curves = case["clean"][way]
            label = f"{case['case'][figure if figure != 'rfa' else 'attackers']:g}"
            (line,) = axis.plot(RADII[1:], curves["certified accuracy"][1:], label=label)
            axis.plot(RADII[1:], curves["rate"][1:], "--", color=line.get_color(), linewidth=0.8)
        axis.set(title=way, xscale="log", xlabel="backdoor norm", ylim=(0, 1.02))
    axes[0].set_ylabel("certified accuracy, - - rate")
    axes[0].legend(title=figure)
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)


def draw_closeness(found: list[dict[str, Any]], path: Path) -> None:
    """Distance by round (lines), the sound bound (dots) and the published one at t_adv (cross)."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 3.4))
    axis = drawing.subplots()
    for case in found:
        index = np.arange(1, len(case["distance"]) + 1)
        after = index >= case["attacked"]
        (line,) = axis.plot(index[after], np.array(case["distance"])[after], label=f"t_adv = {case['attacked']}")
        axis.plot(index[after], np.array(case["sound"])[after], ":", color=line.get_color())
        # Eq. 20 bounds the distance at t_adv; Theorem 2 is that, squared, over 2 sigma^2.
        published = Case.sigma * (2 * case["published divergence"][0]) ** 0.5
        axis.plot([case["attacked"]], [published], "x", color=line.get_color())
    axis.set(yscale="log", xlabel="round", ylabel="l2 distance, ... sound bound, x Eq. 20")
    axis.legend()
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)


def draw_formula(found: dict[str, Any], path: Path) -> None:
    """Figure 9b."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 3.4))
    axis = drawing.subplots()
    for ratio, radius in zip(found["ratios"], found["radius"], strict=True):
        axis.plot(found["rounds"], radius, "o-", label=f"rho / sigma = {ratio:g}")
    axis.set(yscale="log", xlabel="rounds T", ylabel="published radius")
    axis.legend(fontsize=7)
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    parser = options(__doc__, "xie2021")
    parser.add_argument("--figures", nargs="*", help="only these, e.g. sigma gamma closeness formula")
    asked = parser.parse_args(arguments)
    out: Path = asked.out / asked.scale
    experiment = Experiment(asked.scale, asked.data, asked.device)
    trained = lru_cache(maxsize=4)(lambda case: experiment.run(case, progress=False))

    def compute(case: Case) -> Callable[[], dict[str, Any]]:
        return lambda: experiment.measured(case, trained(case.training))

    chosen = figures(experiment.scale)
    wanted = [*chosen, "closeness", "formula"] if asked.figures is None else asked.figures
    if unknown := sorted(set(wanted) - {*chosen, "closeness", "formula"}):
        parser.error(f"unknown figures {unknown}")
    found: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=sum(len(chosen.get(figure, [0])) for figure in wanted)) as bar:
        for figure in wanted:
            bar.set_description(figure)
            if figure == "formula":
                found[figure] = [once(out / "formula.json", formula)]
                draw_formula(found[figure][0], out / "formula.png")
                bar.update()
            elif figure == "closeness":
                found[figure] = [
                    once(out / f"closeness-{t}.json", partial(experiment.closeness, t))
                    for t in experiment.scale.closeness
                ]
                draw_closeness(found[figure], out / "closeness.png")
                bar.update()
            else:
                found[figure] = []
                for case in chosen[figure]:
                    found[figure].append(once(out / "cases" / name(case), compute(case)))
                    bar.update()
                draw(figure, found[figure], out / f"{figure}.png")
    words = verdicts(found)
    for claim, said in words.items():
        print(f"{claim}: {said}")
    return words


if __name__ == "__main__":
    main()
