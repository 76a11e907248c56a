"""Fed-SmoothAdv beside SmoothAdv: does training on devices cost certified accuracy?

``python -m benchmarks.papers.chen2021 --data DIR --scale paper --device cuda`` trains as Chen et
al. 2021 have it, on 1000 devices of which a tenth works in each round, and on all the data in one
place, certifies both with the noise that they were trained for, and times the two estimators of the
attack's gradient. Both versions of the paper, and its appendices, have the same settings.

What the paper leaves out, and what is taken here:

- epsilon is printed as 64, 128, 256: 255ths of the range of a pixel.
- The attack's learning rate is .01, with two steps. Unit steps of that length go .02 far at most,
  which is below the smallest epsilon: every epsilon would train the same model. So steps have
  length 2 epsilon / 2, as in Salman et al. 2019, whose training this is; the figure ``step`` has
  the literal .01 beside them.
- "Multiple SGD steps" on the adversarial samples of a batch: one step, on all its noisy copies
  together.
- The optimizer: SGD without momentum or decay. Inputs of an attack stay in [0, 1].
- The one-point estimator is the paper's Eq. 4 as it is printed: independent draws, no baseline.
- Test images, n0 and n: every 20th image, 100 and 100,000, as in Cohen et al. 2019.

Not in the paper: training with noise alone, in the figure ``ablation``: what the noise does, and
what the attack adds. Each case's numbers are a file of their own in ``--out``, and each training
goes on from its last round.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks import networks
from benchmarks.papers import recipe
from benchmarks.papers.recipe import (
    cifar10,
    mnist,
    monotone,
    once,
    options,
    report,
    sure,
    verdict,
    word,
)
from benchmarks.row import ratio, turns
from rsfl import attacks, demo, fed, runs, train
from rsfl.noise import Gaussian
from rsfl.smooth import GaussianSmoother

STEPS, SAMPLES, ALPHA, CLASSES, SEED = 2, 2, 0.001, 10, 0
LITERAL = 0.01
REPEATS = 31  # of each timing
MARGIN = 0.05  # "close" and "much more" have no number in the paper: five points of accuracy
ATTACKS: dict[str, Callable[..., attacks.Attack]] = {
    "adversarial": attacks.PGD,
    "stochastic": partial(attacks.SmoothAdvPGD, samples=SAMPLES),
    "one-point": partial(attacks.OnePoint, samples=SAMPLES, estimator="plain"),
}
ESTIMATORS = ("stochastic", "one-point")
GAMMAS = (0.1, 0.5)


@dataclass(frozen=True)
class Case:
    """One training, and the noise that it is certified under; the defaults are those of the paper's
    Figure 1.

    Args:
        sigma: Noise of certification, and of training where there is any.
        epsilon: Budget of the attack, in 255ths.
        training: ``plain``, ``noise``, or an attack: ``adversarial`` sees no noise, the others are
            estimators.
        gamma: Share of each device's major class; None trains in one place.
        step: Length of an attack's step; None for 2 epsilon / steps.
        seed: Of the first weights, the shares and the draws.
    """

    sigma: float = 0.25
    epsilon: int = 128
    training: str = "stochastic"
    gamma: float | None = 0.1
    step: float | None = None
    seed: int = SEED

    @property
    def trained(self) -> "Case":
        """The case by what its training depends on: two cases may share a model."""
        return (
            replace(self, sigma=Case.sigma) if self.training in ("plain", "adversarial") else self
        )

    @property
    def attack(self) -> attacks.Attack:
        return ATTACKS[self.training](epsilon=self.epsilon / 255, steps=STEPS, step_size=self.step)

    @property
    def loss(self) -> train.Loss:
        law = Gaussian(self.sigma)
        if self.training in ATTACKS:
            return train.Adversarial(attack=self.attack, law=law, num_classes=CLASSES)
        return train.CrossEntropy(law if self.training == "noise" else None)


@dataclass(frozen=True)
class Scale:
    """How much of everything; the defaults are the paper's."""

    network: str = "alexnet"
    images: int = 50_000
    devices: int = 1000
    active: int = 100
    samples: int = 500
    rounds: int = 150
    batches: int = 20
    lr: float = 0.01
    stride: int = 20
    n: int = 100_000

    @property
    def passes(self) -> int:
        """Passes over all images in one place that show as many samples as all the devices see
        together."""
        return self.rounds * self.active * self.batches * 30 // self.images


def small_cnn() -> nn.Sequential:
    normalise = networks.Normalise(networks.CIFAR_MEAN, networks.CIFAR_STD)
    return nn.Sequential(normalise, networks.small_cnn(3, 32))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits": demo.network,
    "small_cnn": small_cnn,
    "alexnet": networks.alexnet,
    "mnist": networks.small_cnn,
}
DATA: dict[str, Callable[[Path], tuple[torch.Tensor, ...]]] = {
    "digits": lambda _: demo.digits(),
    "mnist": mnist,
}
SCALES = {
    "smoke": Scale(
        "digits",
        images=600,
        devices=20,
        active=2,
        samples=60,
        rounds=2,
        batches=5,
        lr=0.1,
        stride=8,
        n=100,
    ),
    "small": Scale(
        "small_cnn", images=8400, devices=30, active=3, rounds=14, lr=0.1, stride=25, n=300
    ),
    "mnist": Scale("mnist", 60_000, active=10, rounds=20, lr=0.3, n=1000),
    "paper": Scale(),
}
SEEDS = {"mnist": 3}
TIMED = {"smoke": ["digits"], "small": ["small_cnn", "alexnet"], "mnist": [], "paper": ["alexnet"]}
DIFFERS = {
    "smoke": [
        "scikit-learn's digits, a network for them, a handful of steps: a test of the recipe, "
        "not evidence"
    ],
    "small": [
        "the first 8,400 training images, 30 devices of 500, 3 of which work in a round, 14 rounds",
        "a network of two convolutions; learning rate .1, the best of four with noise alone on "
        "the same test images",
        "so in one place there are 1.5 times the consecutive steps that a device's model sees, "
        "in the paper 50 times",
        "the one-point estimator at epsilon = 128 / 255 only; epsilon 64 and 256 at sigma = .25 "
        "only",
        "400 test images (every 25th), n0 = 100, n = 300: no radius above 2.0 sigma",
    ],
    "mnist": [
        "MNIST, a network of two convolutions; learning rate .3, the best of three with noise "
        "alone",
        "1000 devices of 500 images, 10 of which work in a round, 20 rounds: as many samples in "
        "all as two passes",
        "sigma = .5 and epsilon = 255 / 255 alone; the ablation by the stochastic estimator",
        "500 test images (every 20th), n0 = 100, n = 1000: no radius above 2.46 sigma",
    ],
    "paper": ["every 20th test image, n0 = 100, n = 100,000: the paper does not say"],
}
ALWAYS = [
    "attack steps of 2 epsilon / 2, which can reach epsilon; the paper's .01 cannot, and is in "
    "the figure step",
    "noise alone, without an attack, is in the ablation: not in the paper",
]


def figures(scale: str, seeds: int = 1) -> dict[str, list[Case]]:
    """The cases of each figure, one seed after the other."""
    return {
        figure: [replace(case, seed=SEED + seed) for seed in range(seeds) for case in cases]
        for figure, cases in _figures(scale).items()
    }


def _figures(scale: str) -> dict[str, list[Case]]:
    short = scale == "smoke"
    if scale == "mnist":
        cases = grid((0.5,), (255,))
        alone = [
            replace(case, training=training)
            for case in cases
            if case.gamma is not None and case.training == "stochastic"
            for training in ("plain", "adversarial", "noise", "stochastic")
        ]
        return {"sigma": cases, "ablation": alone}
    chosen: dict[str, list[Case]] = {
        "sigma": grid((0.25, 0.5) if short else (0.12, 0.25, 0.5), (128,)),
        "epsilon": grid(
            (0.25,),
            (64, 128) if short else (64, 128, 256),
            ESTIMATORS[: 1 if scale == "small" else 2],
        ),
        "ablation": [
            Case(sigma=sigma, training=training, gamma=gamma)
            for sigma, gamma in product((0.25,) if short else (0.25, 0.5), GAMMAS)
            for training in ("plain", "adversarial", "noise", "stochastic")
        ],
        "step": [
            Case(training=way, step=step) for way, step in product(ESTIMATORS, (None, LITERAL))
        ],
    }
    if scale == "paper":
        chosen["corners"] = grid((0.12, 0.5), (64, 256))
    return chosen


def grid(
    sigmas: Sequence[float], epsilons: Sequence[int], ways: Sequence[str] = ESTIMATORS
) -> list[Case]:
    """In one place, on homogeneous and on heterogeneous devices, by each estimator."""
    return [Case(*values) for values in product(sigmas, epsilons, ways, (None, *GAMMAS))]


def where(case: Case) -> str:
    return "one place" if case.gamma is None else f"devices, gamma = {case.gamma:g}"


def how(case: Case) -> str:
    names = {"adversarial": "adversarial only", "noise": "noise only", "stochastic": "both"}
    return names.get(case.training, case.training)


PANELS: dict[str, tuple[Callable[[Case], str], Callable[[Case], str]]] = {
    "sigma": (lambda case: f"sigma = {case.sigma:g}", where),
    "epsilon": (lambda case: f"epsilon = {case.epsilon} / 255", where),
    "corners": (lambda case: f"sigma {case.sigma:g}, epsilon {case.epsilon} / 255", where),
    "ablation": (lambda case: f"sigma {case.sigma:g}, gamma {case.gamma:g}", how),
    "step": (
        lambda case: case.training,
        lambda case: "steps of epsilon" if case.step is None else f"steps of {case.step:g}",
    ),
}


class Experiment:
    """The data, and models on it."""

    def __init__(self, scale: Scale, data: Path, device: str, checkpoints: Path) -> None:
        self.scale, self.device, self.checkpoints = scale, device, checkpoints
        x, y, test_x, test_y = DATA.get(scale.network, cifar10)(data)
        self.x, self.y = (part[: scale.images].clone().to(device) for part in (x.float(), y))
        self.index = torch.arange(0, len(test_x), scale.stride)
        self.test_x, self.test_y = test_x[self.index].float().to(device), test_y[self.index]

    def network(self, name: str, seed: int = SEED) -> nn.Module:
        """A network that has learned nothing, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return NETWORKS[name]().to(self.device)

    def model(self, case: Case) -> nn.Module:
        """The trained network of a case; a training that was stopped goes on where it was."""
        scale, seed = self.scale, case.seed
        model = self.network(scale.network, seed)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        path = self.checkpoints / "-".join(str(value) for value in astuple(case.trained))
        loss = case.trained.loss
        if case.gamma is None:
            batches = train.Batches(self.x, self.y, 60, seed)
            optimizer = torch.optim.SGD(model.parameters(), scale.lr)
            train.fit(
                model, batches, loss, optimizer, epochs=scale.passes, seed=seed, checkpoint=path
            )
            return model.eval()
        parts = fed.partition.major_class(
            self.y.cpu(), scale.devices, scale.samples, case.gamma, seed=seed
        )
        trainer = fed.SGD(lr=scale.lr, batch_size=30, steps=scale.batches, loss=loss)
        server = fed.Server(
            model,
            fed.clients(self.x, self.y, parts, trainer),
            fraction=scale.active / scale.devices,
            seed=seed,
        )
        return server.run(scale.rounds, checkpoint=path).model

    def measured(self, case: Case) -> dict[str, Any]:
        """The certified test images: for each the radius, -1 where it is not certified to be of its
        class."""
        began = time.process_time()
        model = self.model(case)
        trained = time.process_time()
        smoother = GaussianSmoother(model, case.sigma, CLASSES)
        found = smoother.certify(
            self.test_x, n=self.scale.n, alpha=ALPHA, seed=case.seed, index=self.index
        )
        label, radius = found.label.cpu(), found.radius.cpu()
        radii = np.linspace(0, smoother.law.radius(ALPHA ** (1 / self.scale.n)), 41)
        return {
            "radius": torch.where(label == self.test_y, radius, -1.0).tolist(),
            "mean radius": runs.average_certified_radius(found, self.test_y),
            "radii": radii.tolist(),
            "certified accuracy": np.asarray(
                runs.certified_accuracy(found, self.test_y, radii)
            ).tolist(),
            "core seconds": {
                "training": trained - began,
                "certification": time.process_time() - trained,
            },
        }

    def timed(self, name: str) -> dict[str, Any]:
        """How many times longer the stochastic estimator takes than the one-point one, in turns on
        the same batch.

        A training step of a device, and of it the attack alone.
        """
        began = time.process_time()
        x, y = self.x[:30], self.y[:30]
        calls: dict[str, Callable[[], object]] = {}
        for way in ESTIMATORS:
            case, model = Case(training=way), self.network(name)
            trainer = fed.SGD(lr=self.scale.lr, batch_size=30, loss=case.loss)
            calls[f"training, {way}"] = partial(trainer, model, x, y, fed.Task(1, 0, SEED))
            calls[f"attack, {way}"] = partial(
                case.attack, GaussianSmoother(model, case.sigma, CLASSES), x, y
            )
        taken = turns(calls, repeats=REPEATS)
        numbers: dict[str, Any] = {"network": name}
        for what in ("training", "attack"):
            slow, fast = (taken[f"{what}, {way}"] for way in ESTIMATORS)
            each = [a / b for a, b in zip(slow, fast, strict=True)]
            numbers[what] = {
                "median": ratio(slow, fast),
                "quartiles": np.quantile(each, (0.25, 0.75)).tolist(),
            }
        return {**numbers, "core seconds": {"timing": time.process_time() - began}}

    def strength(self, case: Case) -> dict[str, Any]:
        """How far the attacks of training lower the vote for the true class of the case's model.

        The votes are means over the test images, by fresh noise. Beside the paper's estimators:
        antithetic draws, as few and many.
        """
        began = time.process_time()
        smoother = GaussianSmoother(self.model(case), case.sigma, CLASSES)
        tried = {way: replace(case, training=way).attack for way in ESTIMATORS}
        for m in (SAMPLES, 256):
            tried[f"antithetic, {m} draws"] = attacks.OnePoint(
                epsilon=case.epsilon / 255, steps=STEPS, samples=m
            )
        draws = torch.Generator(self.device).manual_seed(SEED)
        votes: dict[str, list[torch.Tensor]] = {way: [] for way in ("none", *tried)}
        for part in torch.split(torch.arange(len(self.index)), 50):
            x, y = self.test_x[part], self.test_y[part].to(self.device)
            found = {
                way: attack(smoother, x, y, generator=draws).point for way, attack in tried.items()
            }
            for way, point in {"none": x, **found}.items():
                with torch.no_grad():
                    shares = smoother.probabilities(point, 100, generator=draws)
                votes[way].append(shares.gather(1, y[:, None]).squeeze(1))
        means = {way: float(torch.cat(parts).mean()) for way, parts in votes.items()}
        return {"votes": means, "core seconds": {"strength": time.process_time() - began}}


Found = Mapping[Case, Mapping[str, Any]]
Pairs = Sequence[tuple[Case, Case]]


def rivals(
    found: Found, changes: Mapping[str, Any], **taken: Sequence[Any]
) -> list[tuple[Case, Case]]:
    """The cases that have one of the values taken of each attribute, each with its changed self, if
    both are there."""
    chosen = [
        case
        for case in found
        if all(getattr(case, name) in values for name, values in taken.items())
    ]
    pairs = [(case, replace(case, **changes)) for case in chosen]
    return [(case, other) for case, other in pairs if other != case and other in found]


def difference(found: Found, pairs: Pairs, share: float) -> tuple[float, float]:
    """By how much the first of each pair certifies more, at a share of its sigma: the mean, and its
    standard error."""
    at = np.c_[[share * case.sigma for case, _ in pairs]]
    first, second = (
        np.array([found[pair[side]]["radius"] for pair in pairs]) >= at for side in (0, 1)
    )
    return recipe.difference(first, second)


def much(gain: float, error: float) -> str:
    """Whether a difference is above the margin by more than two standard errors."""
    return sure(gain - MARGIN, error)


def hardly(gain: float, error: float) -> str:
    """Whether a difference is above minus the margin by more than two standard errors."""
    return sure(gain + MARGIN, error)


def close(gain: float, error: float) -> str:
    """Whether a difference is within the margin of zero, give or take two standard errors."""
    return sure(MARGIN - abs(gain), error)


def claims(found: Found) -> Iterator[tuple[str, Pairs, Callable[[float, float], str]]]:
    """What is claimed of which pairs. The paper makes no claim on noise alone, nor on other steps
    than its own."""
    full: dict[str, Sequence[Any]] = {"training": ESTIMATORS, "step": (None,)}
    for gamma in GAMMAS:
        pairs = rivals(found, {"gamma": gamma}, gamma=(None,), **full)
        yield f"one place is above devices, gamma = {gamma}", pairs, sure
        yield f"devices are close to one place, gamma = {gamma}", pairs, close
    yield (
        "gamma does not matter (.1 - .5)",
        rivals(found, {"gamma": 0.5}, gamma=(0.1,), **full),
        close,
    )
    pairs = rivals(found, {"training": "one-point"}, training=("stochastic",), step=(None,))
    yield "the estimator does not matter (stochastic - one-point)", pairs, close
    for sigma in (0.25, 0.5):
        for claim, first, second, test in (
            (
                "adversarial alone is hardly above plain (plain - adversarial)",
                "plain",
                "adversarial",
                hardly,
            ),
            ("both are far above adversarial alone", "stochastic", "adversarial", much),
            ("both are above noise alone", "stochastic", "noise", sure),
            ("both by the one-point estimator are above noise alone", "one-point", "noise", sure),
        ):
            pairs = rivals(
                found, {"training": second}, training=(first,), sigma=(sigma,), gamma=GAMMAS
            )
            yield f"sigma = {sigma}: {claim}", pairs, test
    for way in ESTIMATORS:
        pairs = rivals(found, {"step": LITERAL}, training=(way,))
        yield f"{way}: steps that reach epsilon are above steps of {LITERAL}", pairs, sure


def verdicts(
    found: Found, times: Sequence[Mapping[str, Any]], votes: Mapping[str, float]
) -> dict[str, str]:
    """Each claim at three radii, with the difference in points of certified accuracy, give or take
    two standard errors.

    "Close", "no matter", "hardly" and "much" mean five points.
    """

    def said(test: Callable[[float, float], str], pairs: Pairs, share: float) -> str:
        gain, error = difference(found, pairs, share)
        return f"{test(gain, error)} ({100 * gain:+.1f} +- {200 * error:.1f}) at {share:g} sigma"

    words = {}
    for claim, pairs, test in claims(found):
        if pairs:
            words[f"{claim}, pairs: {len(pairs)}"] = ", ".join(
                said(test, pairs, share) for share in (0, 1, 1.5)
            )
    for low, high in pairwise(sorted({case.sigma for case in found})):
        pairs = rivals(found, {"sigma": high}, training=ESTIMATORS, sigma=(low,), step=(None,))
        if pairs:
            words[f"sigma = {low} is more accurate than {high}, pairs: {len(pairs)}"] = said(
                sure, pairs, 0
            )
            reach = [
                max(max(found[case]["radius"]) for case in side)
                for side in zip(*pairs, strict=True)
            ]
            words[f"sigma = {high} certifies further than {low}"] = monotone(
                reach, rising=True
            ) + " (largest radius {:.3f}, {:.3f})".format(*np.floor(1e3 * np.array(reach)) / 1e3)
    for timed in times:
        whole, attack = (
            "{median:.2f} times, quartiles {quartiles[0]:.2f} to {quartiles[1]:.2f}".format(
                **timed[part]
            )
            for part in ("training", "attack")
        )
        median, (low, high) = (timed["training"][name] for name in ("median", "quartiles"))
        error = 1.253 * (high - low) / 1.349 / REPEATS**0.5  # of a median, where noise is normal
        words[f"one-point training is 2 to 3 times faster, {timed['network']}"] = (
            f"{verdict([(median - 2, error), (3 - median, error)])} ({whole}; the attack alone "
            f"{attack})"
        )
    if votes:
        falls = {way: votes["none"] - vote for way, vote in votes.items()}
        shown = ", ".join(f"{way} {vote:.4f}" for way, vote in votes.items())
        words[
            "the one-point attack lowers the vote at least half as much as the stochastic one"
        ] = f"{word(falls['one-point'] >= falls['stochastic'] / 2)} (true class by attack: {shown})"
    return words


def draw(figure: str, found: Found, path: Path) -> None:
    """Certified accuracy by radius, mean over the seeds; the one-point estimator dashed."""
    from matplotlib.figure import Figure

    panel, line = PANELS[figure]
    titles, labels = (list(dict.fromkeys(of(case) for case in found)) for of in (panel, line))
    curves = defaultdict[Case, list[Any]](list)
    for case, numbers in found.items():
        curves[replace(case, seed=SEED)].append(numbers)
    drawing = Figure(figsize=(9, 3.4), layout="constrained")
    axes = dict(
        zip(titles, drawing.subplots(1, len(titles), sharey=True, squeeze=False)[0], strict=True)
    )
    for case, rows in curves.items():
        dashed = case.training == "one-point" and figure != "step"
        axes[panel(case)].plot(
            rows[0]["radii"],
            np.mean([numbers["certified accuracy"] for numbers in rows], axis=0),
            "--" if dashed else "-",
            color=f"C{labels.index(line(case))}",
            label=None if dashed else line(case),
        )
    for title, axis in axes.items():
        axis.set(xlabel="l2 radius", xlim=(0, None), ylim=(0, None))
        axis.set_title(title, fontsize=10)
    first = axes[titles[0]]
    ways = {case.training for case in found}
    first.set_ylabel(
        "certified accuracy"
        + (", - - one-point" if "one-point" in ways and figure != "step" else "")
    )
    drawing.legend(
        *first.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
    )
    drawing.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    parser = options(__doc__, "chen2021", SCALES)
    parser.add_argument(
        "--figures", nargs="*", help="only these: sigma epsilon corners ablation step strength time"
    )
    parser.add_argument("--seeds", type=int, help="trainings of each case; 3 on mnist, else 1")
    asked = parser.parse_args(arguments)
    out: Path = asked.out / asked.scale
    seeds = asked.seeds or SEEDS.get(asked.scale, 1)
    scale, chosen = SCALES[asked.scale], figures(asked.scale, seeds)
    tables = ("strength", "time") if TIMED[asked.scale] else ()
    wanted = recipe.chosen(parser, asked.figures, [*chosen, *tables])
    experiment = Experiment(scale, asked.data, asked.device, out / "training")
    settings = {"scale": asdict(scale), "device": asked.device}
    found: dict[Case, dict[str, Any]] = {}
    times, strength = list[dict[str, Any]](), dict[str, Any]()
    with tqdm(total=sum(len(chosen.get(figure, [0])) for figure in wanted)) as bar:
        for figure in wanted:
            bar.set_description(figure)
            if figure == "strength":
                case = Case(training="noise")
                compute = partial(experiment.strength, case)
                strength = once(out / "strength", {**settings, "case": asdict(case)}, compute)
                bar.update()
            elif figure == "time":
                for name in TIMED[asked.scale]:
                    times.append(
                        once(
                            out / "times",
                            {**settings, "network": name},
                            partial(experiment.timed, name),
                        )
                    )
                bar.update()
            else:
                for case in chosen[figure]:
                    compute = partial(experiment.measured, case)
                    found[case] = once(out / "cases", {**settings, "case": asdict(case)}, compute)
                    bar.update()
                draw(figure, {case: found[case] for case in chosen[figure]}, out / f"{figure}.png")
    words = verdicts(found, times, strength.get("votes", {}))
    spent = [numbers["core seconds"] for numbers in (*found.values(), *times, strength) if numbers]
    report(
        out,
        asked.scale,
        [*DIFFERS[asked.scale], *ALWAYS, f"trainings of each case: {seeds}"],
        words,
        sum(sum(parts.values()) for parts in spent),
    )
    return words


if __name__ == "__main__":
    main()
