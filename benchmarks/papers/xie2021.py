"""CRFL's experiments: what each setting does to the certified backdoor, as published and as proved
here.

``python -m benchmarks.papers.xie2021 --dataset mnist --data DIR --scale paper`` trains logistic
regression as Table 1 of Xie et al. 2021 has it, one factor changed at a time, and certifies test
samples, clean and with the trigger, in four ways:

- published: Corollary 1 on M noisy models; its statement is about a clean run whose attackers scale
  their updates too;
- pattern: exact margins against the same threat, without a guarantee for changed labels, as Lemma 1
  is used there;
- labels: the poisoned samples' labels change as well, as they do in the experiment;
- honest: and the attackers' scaling is part of the attack: compared with a run in which there is
  none.

The last three hold for the trained model itself, the published one for the vote of its noisy
copies. Where the paper is silent, or its code says something else, ``differs`` tells what was
taken, and so does the output. Each case's numbers are a file of their own in ``--out``: what is
there is not computed again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.papers.loan import loans
from benchmarks.papers.recipe import idx, mnist, once, options, report
from benchmarks.papers.xie2021_findings import draw, verdicts
from rsfl import bounds, demo, fed, runs
from rsfl.fed import poison
from rsfl.smooth import ParameterSmoother

PATTERN, SEED = 0.1, 0
TRIGGER = (
    "delinq_2yrs",
    "pub_rec",
)  # of a loan: delinquencies in two years, and derogatory public records
TARGET = "Does not meet the credit policy. Status:Fully Paid"
RADII = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 181)])
SOUND = {
    "pattern": {"flips": False, "comparator": "scaled"},
    "labels": {"flips": True, "comparator": "scaled"},
    "honest": {"flips": True, "comparator": "clean"},
}


@dataclass(frozen=True)
class Case:
    """One run and how it is certified; the defaults are the paper's for MNIST.

    ``clip`` is the radius of the ball in round t, ``clip[0] + clip[1] t``; ``steps`` the local
    steps of a round, an epoch if None; ``smoothing`` the noise of the M models that vote;
    ``lipschitz_round`` the round whose clip radius gives L_Z, the attacked one if None.
    """

    sigma: float = 0.01
    poisoned: int = 5
    batch: int = 100
    gamma: float = 10.0
    attackers: int = 1
    rule: str = "mean"
    clients: int = 20
    rounds: int = 100
    attacked: int = 10
    steps: int | None = None
    clip: tuple[float, float] = (2.0, 0.1)
    smoothing: float = 0.01
    lipschitz_round: int | None = None
    models: int = 1000
    alpha: float = 0.001

    @property
    def training(self) -> "Case":
        """The case without what matters for certification alone."""
        return replace(self, smoothing=0.01, lipschitz_round=None, models=1000, alpha=0.001)

    def rho(self, index: int) -> float:
        """The clip radius of a round."""
        return self.clip[0] + self.clip[1] * index


@dataclass(frozen=True)
class Scale:
    """How much of everything: the common case, how many samples are certified, which figures, and
    their factors."""

    base: Case
    certified: int
    figures: tuple[str, ...]
    sigma: tuple[float, ...] = (0.0, 0.005, 0.01, 0.02)
    attackers: tuple[int, ...] = (1, 2, 4)
    clients: tuple[int, ...] = (10, 20, 40)
    rounds: tuple[int, ...] = (20, 50, 100)
    attacked: tuple[int, ...] = (10, 20, 40, 43, 44)
    closeness: tuple[int, ...] = (20, 40, 60)


ALL = (
    *("sigma", "poisoned", "gamma", "attackers", "rfa", "clients", "rounds"),
    *("models", "alpha", "attacked", "closeness", "formula"),
)
IMAGES, TABLE = (
    ("sigma", "gamma", "attackers", "rfa", "rounds"),
    ("sigma", "poisoned", "gamma", "clients", "rounds"),
)
BASES = {
    "mnist": Case(),
    "emnist": Case(batch=200, gamma=20.0, clients=50, rounds=150, steps=70, clip=(4.0, 0.25)),
    "loan": Case(attacked=6, steps=143, clip=(2.0, 0.025)),
}
SMOKE = Scale(
    Case(clients=4, rounds=4, attacked=2, models=100),
    100,
    ALL,
    sigma=(0.0, 0.01),
    attackers=(1, 2),
    clients=(2, 4),
    rounds=(3, 4),
    attacked=(1, 2),
    closeness=(2,),
)
SHORT: dict[str, Any] = {
    "sigma": (0.0, 0.01, 0.02),
    "rounds": (10, 20, 30),
    "attacked": (3, 5, 10),
    "closeness": (5, 10),
}
SCALES = {
    ("mnist", "small"): Scale(replace(BASES["mnist"], rounds=20, attacked=5), 1000, ALL, **SHORT),
    ("mnist", "paper"): Scale(BASES["mnist"], 5000, ALL, sigma=(0.0, 0.005, 0.01, 0.02, 0.05)),
    # A fortieth is poisoned, as in the paper.
    ("emnist", "small"): Scale(
        replace(BASES["emnist"], rounds=20, attacked=5, clients=10, batch=40, poisoned=1),
        1000,
        IMAGES,
        **SHORT,
    ),
    ("emnist", "paper"): Scale(
        BASES["emnist"], 10000, ALL, clients=(25, 50, 100), rounds=(50, 100, 150)
    ),
    ("loan", "small"): Scale(
        replace(BASES["loan"], rounds=20), 1000, TABLE, clients=(10, 20, 30), **SHORT
    ),
    ("loan", "paper"): Scale(BASES["loan"], 10000, ALL, clients=(10, 20, 30)),
}


def figures(scale: Scale) -> dict[str, list[Case]]:
    """The cases of each figure, in the order of its factor. The paper names few of its values:
    these are ours."""
    base = scale.base
    strong = replace(base, gamma=10 * base.gamma, attackers=2, lipschitz_round=scale.attacked[-1])
    found = {
        "sigma": [replace(base, sigma=v) for v in scale.sigma],
        "poisoned": [replace(base, poisoned=v * base.poisoned) for v in (1, 2, 4)],
        "gamma": [replace(base, gamma=v * base.gamma) for v in (1, 2, 5, 10)],
        "attackers": [replace(base, attackers=v) for v in scale.attackers],
        "rfa": [replace(base, rule="rfa", attackers=v) for v in scale.attackers],
        "clients": [replace(base, clients=v) for v in scale.clients],
        "rounds": [replace(base, rounds=v) for v in scale.rounds],
        "models": [replace(base, models=v * base.models // 10) for v in (2, 5, 10, 20)],
        "alpha": [replace(base, alpha=v) for v in (0.0001, 0.001, 0.01)],
        "attacked": [replace(strong, attacked=v) for v in scale.attacked],
        "closeness": [
            replace(base, gamma=float(base.clients), attacked=v)
            for v in scale.closeness
            if v <= base.rounds
        ],
        "formula": [base],
    }
    return {name: found[name] for name in scale.figures}


@dataclass(frozen=True)
class Data:
    """Samples, the backdoor, and who holds what: the largest of ``groups``, or equal shares."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    pattern: Tensor
    target: int
    groups: NDArray[np.str_] | None = None

    @classmethod
    def images(cls, name: str, parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> "Data":
        """Images with four bright pixels as the trigger, and the class 0 as its target."""
        return cls(name, *parts, pattern=poison.pixel_patch(parts[0].shape[1:], PATTERN), target=0)

    def split(self, case: Case) -> list[NDArray[np.int64]]:
        """The samples of each client. Groups are cut to whole batches, so that each has the same
        poisoned share."""
        if self.groups is None:
            return fed.partition.equal(len(self.x), case.clients, seed=SEED)
        parts = sorted(fed.partition.by_column(self.groups), key=len, reverse=True)[: case.clients]
        return [part[: len(part) // case.batch * case.batch] for part in parts]


def emnist(data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EMNIST by merge, (N, 1, 28, 28) in [0, 1] with rows and columns swapped as in its files, and
    its labels.

    A part of the training images is taken where there is one.
    """
    parts = []
    for part in (
        "train-subset" if [*(data / "emnist").glob("*-train-subset-*")] else "train",
        "test",
    ):
        path = data / "emnist" / f"emnist-bymerge-{part}"
        parts.append(idx(path.with_name(f"{path.name}-images-idx3-ubyte"))[:, None].float() / 255)
        parts.append(idx(path.with_name(f"{path.name}-labels-idx1-ubyte")).long())
    return parts[0], parts[1], parts[2], parts[3]


def load(dataset: str, folder: Path) -> Data:
    """A data set with its backdoor."""
    if dataset == "digits":
        return Data.images(dataset, demo.digits())
    if dataset != "loan":
        return Data.images(dataset, {"mnist": mnist, "emnist": emnist}[dataset](folder))
    table = loans(folder / "loan", seed=SEED)
    raised = {table.names.index(name): PATTERN / len(TRIGGER) ** 0.5 for name in TRIGGER}
    return Data(
        dataset,
        *(table.x, table.y, table.test_x, table.test_y),
        pattern=poison.feature_increments(len(table.names), raised),
        target=table.classes.index(TARGET),
        groups=table.states,
    )


class Experiment:
    """Runs on a data set, and their numbers."""

    def __init__(self, scale: Scale, data: Data, device: str) -> None:
        self.scale, self.data, self.device = scale, data, device
        self.x, self.y = data.x.to(device).double(), data.y.to(device)
        self.labels = data.test_y[: scale.certified].to(device)
        clean = data.test_x[: scale.certified].to(device).double()
        self.pattern = data.pattern.to(self.x)
        self.tests = {"clean": clean, "backdoored": clean + self.pattern}
        self.classes = int(data.y.max()) + 1
        self.trained = lru_cache(maxsize=4)(self.run)

    def settings(self, what: str, case: Case) -> dict[str, Any]:
        """All that the numbers of a case depend on."""
        return {
            "what": what,
            "data": self.data.name,
            "train": len(self.x),
            "certified": len(self.labels),
            "device": self.device,
            "case": asdict(case),
        }

    def run(self, case: Case, *, honest: bool = False, **settings: Any) -> fed.Result:
        """The federated run of a case; without its attack if ``honest``."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(self.x[0].numel(), self.classes)).to(self.x)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        trainer = fed.SGD(lr=0.001, batch_size=case.batch, steps=case.steps)
        members = fed.clients(self.x, self.y, self.data.split(case), trainer)
        attack = fed.Attack(
            rounds=[case.attacked],
            data=poison.Backdoor(self.pattern, self.data.target, per_batch=case.poisoned),
            update=poison.Scale(case.gamma),
        )
        server = fed.Server(
            model,
            members,
            aggregate=fed.Mean() if case.rule == "mean" else fed.GeometricMedian(),
            clip=case.rho,
            noise_std=case.sigma or None,
            sizes={member.id: 1 for member in members},  # all clients weigh the same
            seed=SEED,
        )
        attacks = {} if honest else dict.fromkeys(range(case.attackers), attack)
        return server.run(case.rounds, attacks=attacks, **settings)

    def threat(self, case: Case, **settings: Any) -> bounds.FeatureThreat:
        """The attack as certificates are told of it."""
        return bounds.FeatureThreat(
            clients=range(case.attackers),
            rounds=[case.attacked],
            norm=PATTERN,
            per_batch=case.poisoned,
            scale=case.gamma,
            **settings,
        )

    def certified(
        self, case: Case, result: fed.Result, x: Tensor
    ) -> Iterator[tuple[str, fed.PoisoningCertificate]]:
        """The certificates of a run, each with backdoor norms as radii."""
        if case.sigma:
            at = case.attacked if case.lipschitz_round is None else case.lipschitz_round
            votes = ParameterSmoother(result.model, case.smoothing, self.classes).certify(
                x,
                n=case.models,
                alpha=case.alpha,
                runner_up="bounded",
                confidence="hoeffding",
            )
            lipschitz = float(bounds.logistic_lipschitz(case.rho(at)))
            published = fed.published(votes, result.ledger, self.threat(case), lipschitz)
            yield "published", fed.largest_backdoors(published, result.ledger)
        if case.rule == "mean":  # the theorem needs fixed weights
            for name, settings in SOUND.items():
                found = fed.certify(result.model, x, result.ledger, self.threat(case, **settings))
                yield name, fed.largest_backdoors(found, result.ledger)

    def measured(self, case: Case) -> dict[str, Any]:
        """All the numbers of a case."""
        result, truth = self.trained(case.training), self.labels.cpu().numpy()
        members = result.ledger.rounds[case.attacked - 1].participants
        numbers: dict[str, Any] = {
            "case": asdict(case),
            "radii": RADII.tolist(),
            "input norm": max(one.input_norm for one in members),
        }
        others = self.labels != self.data.target
        for name, x in self.tests.items():
            with torch.no_grad():
                hit = result.model(x[others]).argmax(dim=1) == self.data.target
            numbers[name] = {
                "accuracy": fed.accuracy(result.model, x, self.labels),
                "taken for target": float(hit.double().mean()),
            }
            numbers[name]["ways"] = {
                way: summary(found, truth) for way, found in self.certified(case, result, x)
            }
        return numbers

    def path(self, case: Case, *, honest: bool = False) -> tuple[list[Tensor], fed.Ledger]:
        """The parameters after each round, before the noise, and the ledger."""
        models: list[Tensor] = []

        def keep(model: nn.Module) -> dict[str, float]:
            models.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
            return {}

        return models, self.run(case, honest=honest, evaluate=keep).ledger

    @cached_property
    def clean_path(self) -> list[Tensor]:
        """The parameters after each round of the run without an attack, which all closeness runs
        share."""
        return self.path(self.scale.base, honest=True)[0]

    def closeness(self, case: Case) -> dict[str, Any]:
        """Distance of a backdoored run with model replacement from a clean one, by round, and what
        bounds it."""
        poisoned, ledger = self.path(case)
        rounds, threat = ledger.rounds, self.threat(case)
        one = rounds[case.attacked - 1].participants[0]
        attacker = bounds.Attacker(
            weight=one.weight,
            scale=case.gamma,
            steps=len(one.batch_sizes),
            lr=one.lr,
            poison_fraction=case.poisoned / min(one.batch_sizes),
        )
        divergence = bounds.crfl_divergence(
            PATTERN,
            attackers=[attacker],
            lipschitz=float(bounds.logistic_lipschitz(case.rho(case.attacked))),
            sigma=case.sigma,
            later=[],
        )
        return {
            "attacked": case.attacked,
            "distance": [
                float((a - b).norm()) for a, b in zip(poisoned, self.clean_path, strict=True)
            ],
            "sound": [
                bounds.deviation(rounds[:t], threat).value if t >= case.attacked else 0.0
                for t in range(1, len(rounds) + 1)
            ],
            # Theorem 2 is Eq. 20, squared, over 2 sigma^2.
            "published": case.sigma * float(2 * divergence) ** 0.5,
        }

    def formula(self, case: Case) -> dict[str, Any]:
        """Figure 9b: the published radius with p_A = .7 and p_B = .1, over rho / sigma and the
        rounds."""
        attacker = bounds.Attacker(
            weight=1 / case.clients,
            scale=case.gamma,
            steps=case.steps or len(self.x) // case.clients // case.batch,
            lr=0.001,
            poison_fraction=case.poisoned / case.batch,
        )
        later, ratios = [0, 10, 40, 90, 190], [1.0, 2.0, 3.0, 4.0, 6.0, 10.0]
        radius = partial(
            bounds.crfl_radius,
            0.7,
            0.1,
            attackers=[attacker],
            lipschitz=float(bounds.logistic_lipschitz(case.rho(case.attacked))),
            sigma=case.sigma,
        )
        return {
            "ratios": ratios,
            "rounds": [case.attacked + more for more in later],
            "radius": [
                [float(radius(later=[(ratio * case.sigma, case.sigma)] * more)) for more in later]
                for ratio in ratios
            ],
        }


def summary(found: fed.PoisoningCertificate, truth: NDArray[np.int64]) -> dict[str, Any]:
    """Means of the radii with their standard errors over the samples, and the curves."""
    radius = found.radius.cpu().numpy()
    correct = np.where(found.label.cpu().numpy() == truth, radius, 0.0)
    return {
        "mean radius": float(radius.mean()),
        "mean radius, error": float(radius.std() / len(radius) ** 0.5),
        "mean correct radius": float(correct.mean()),
        "mean correct radius, error": float(correct.std() / len(correct) ** 0.5),
        "largest radius": float(radius.max()),
        "rate": np.asarray(runs.certified_rate(found, RADII)).tolist(),
        "certified accuracy": np.asarray(runs.certified_accuracy(found, truth, RADII)).tolist(),
    }


# What was done otherwise than in the paper, or where it and its code disagree.
DIFFERS = {
    "digits": ("digits instead of the paper's data: a test of the recipe, no evidence",),
    "mnist": (
        "images in [0, 1] as in its code, hence of norms far above the 1 that Lemma 1 needs",
    ),
    "emnist": (
        "a seventh of the training images, and more passes over them for the same 70 local steps",
        "images in [0, 1], of norms far above the 1 that Lemma 1 needs, with rows and columns "
        "swapped as in the files, "
        "to which logistic regression is blind",
    ),
    "loan": (
        "loans of 2007 to 2011 alone, with 4 of the 9 outcomes",
        "features known when a loan is made, where the paper has the latest payments as well",
        f"the trigger raises {' and '.join(TRIGGER)}; batches of 100 with 5 poisoned instead of "
        f"800 with 40",
        "clients are the largest states, cut to whole batches; the largest attack",
    ),
}


def differs(experiment: Experiment) -> list[str]:
    """All that is to be said of an experiment before its numbers are compared with the paper's."""
    base = experiment.scale.base
    return [
        f"{len(experiment.x)} training samples, the first {len(experiment.labels)} of the test "
        f"set; {base.clients} "
        f"clients, {base.rounds} rounds, attack in round {base.attacked} unless said; one seed",
        *DIFFERS[experiment.data.name],
        "taken from the paper, not from its code: t_adv, gamma, R; no cap on rho_t; L_Z from "
        "rho_t at t_adv",
        "taken from its code: all clients weigh the same; under RFA, a client's weight is what "
        "the aggregation gave it",
        "neither: 100 noisy models more select the label, so that votes do not bound what they "
        "have chosen; alpha is "
        "shared by the bounds on two votes, where the paper spends it on each; attackers scale "
        "when they attack and at "
        "no other time; RFA goes on until it has converged, where the code stops after ten "
        "steps; the values of the "
        "factors, of which the paper names few",
    ]


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    parser = options(__doc__, "xie2021")
    parser.add_argument("--dataset", choices=BASES, default="mnist")
    parser.add_argument("--figures", nargs="*", choices=ALL, help="only these")
    asked = parser.parse_args(arguments)
    begin, smoke = perf_counter(), asked.scale == "smoke"
    scale = SMOKE if smoke else SCALES[asked.dataset, asked.scale]
    experiment = Experiment(
        scale, load("digits" if smoke else asked.dataset, asked.data), asked.device
    )
    out = asked.out / asked.scale / experiment.data.name
    chosen = {
        name: cases
        for name, cases in figures(scale).items()
        if asked.figures is None or name in asked.figures
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with tqdm(total=sum(map(len, chosen.values()))) as bar:
        for name, cases in chosen.items():
            bar.set_description(name)
            what = name if name in ("closeness", "formula") else "measured"
            for case in cases:
                compute = partial(getattr(experiment, what), case)
                found[name].append(once(out / "cases", experiment.settings(what, case), compute))
                bar.update()
            draw(name, found[name], out / f"{name}.png")
    words = verdicts(found, len(experiment.labels))
    report(out, asked.scale, differs(experiment), words, perf_counter() - begin)
    return words


if __name__ == "__main__":
    main()
