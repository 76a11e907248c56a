"""SmoothAdv (Salman et al. 2019) on CIFAR-10: does adversarial training of the smoothed classifier certify more?

``python -m benchmarks.papers.salman2019 --data DIR --scale small`` trains networks with noise and with SmoothAdv,
certifies test images, attacks them, and compares, by figure:

- envelopes: Table 2 and Figure 1, the best of several models at each radius, and Table 3, the same votes read in linf;
- training: one model a way of training, among them adversarial training of the network itself (Appendix C.1);
- samples, epsilon: the draws m and the budget in training (Appendices C.2 and C.3);
- attack: Figure 3, accuracy under attacks of m draws beside what is certified; the votes n of the prediction (C.5) and
  the gradient-free attack (C.6);
- data: pre-training and self-training (section 4.2), on a substitute: held-back parts of CIFAR-10's own training set
  stand for ImageNet and for the unlabelled tiny images;
- digits: the figure ``training`` on scikit-learn's digits with more seeds, at the settings of Chen et al. 2021
  (sigma = 0.25, epsilon = 128/255, two draws, two steps), and the claims of that paper on the one-point estimator.

Taken from the paper where its code differs: a batch is B images with m draws each (Pseudocode 1; the code takes B / m
images), and epsilon is 0.25, 0.5 ... (the code's 64, 127 ... are divided by 256 in training and by 255 in its plots).
Taken from the code: steps of 2 epsilon / T, no random start, epsilon grows over the first epochs, DDN starts at
epsilon, pre-training is followed by a new last layer, pseudo-labels weigh as much as labels and, at scale ``paper``,
images are mirrored and shifted. Of the paper's T in {2, 4, 6, 8, 10} the rows with T = 2 are taken, with DDN at one
epsilon. All ways of training take as many steps, whatever the number of images, but for fine-tuning, which comes on top
of its pre-training.

Weights, votes and numbers are kept in ``--out``: what is there is not computed again. Two models are compared on the
same test images; a difference is called a finding where chance, over the images and, where there are several, over the
seeds of training, explains it with a probability below 5 % (jointly for all radii of a claim, by the normal law).
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist, mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler
from tqdm.auto import tqdm
from typing_extensions import override

from benchmarks.networks import resnet, small_cnn
from benchmarks.papers.recipe import cifar10, once, options, report, word
from rsfl import attacks, bounds, demo, runs, train
from rsfl.attacks import PGD, Attack, OnePoint, SmoothAdvDDN, SmoothAdvPGD
from rsfl.noise import Gaussian
from rsfl.smooth import Smoother
from rsfl.smooth.votes import evaluating
from rsfl.train import Adversarial, Batches, CrossEntropy, Loss, Source, fit

ALPHA, LINF = 0.001, 2 / 255

Reach = NDArray[np.float64]
"""Of each test image the radius up to which it is certified to be of its class; -1 where it is not."""


@dataclass(frozen=True)
class Setting:
    """What all models of a figure share: the data, the network, how long it trains, how it is certified.

    Attributes:
        data: ``digits`` or ``cifar10``.
        network: One of ``NETWORKS``.
        train: Training images, the first ones.
        few: Labelled images of the figure ``data``, the first ones.
        more: The images after those that pre-training takes, and as many after these without labels.
        epochs: Epochs over ``train`` images; other numbers of images get as many steps.
        warmup: Epochs, of those, in which epsilon grows.
        tuning: Epochs of fine-tuning, of the same size.
        batch: Images a step.
        lr: Learning rate.
        tuning_lr: Learning rate of fine-tuning.
        every: Of the test images every how many is taken.
        images: How many are certified.
        attacked: How many of those are attacked.
        n: Votes for a certificate.
    """

    data: str
    network: str
    train: int
    few: int
    more: int
    epochs: int
    warmup: int
    tuning: int
    batch: int
    lr: float
    tuning_lr: float
    every: int
    images: int
    attacked: int
    n: int


DIGITS = Setting(
    data="digits",
    network="digits",
    train=1397,
    few=400,
    more=400,
    epochs=40,
    warmup=10,
    tuning=10,
    batch=100,
    lr=2e-3,
    tuning_lr=1e-3,
    every=1,
    images=400,
    attacked=100,
    n=1000,
)


@dataclass(frozen=True)
class Case:
    """One model: how it was trained. The noise is that of its certificates as well.

    Attributes:
        way: ``plain``, ``noise``, or one of ``ATTACKS``.
        sigma: Standard deviation of the noise.
        epsilon: Budget of the attack in l2; 0 where there is none.
        samples: Draws m of the attack.
        steps: Its steps T.
        data: ``all`` of the training images, or of those of the figure ``data``: the ``few`` labelled, those ``held
            back``, ``pre-training`` on these and then the few, ``self-training`` on unlabelled ones, or ``both``.
        seed: Of initial weights, order, noise and votes.
    """

    way: str
    sigma: float
    epsilon: float = 0.0
    samples: int = 2
    steps: int = 2
    data: str = "all"
    seed: int = 0


@dataclass(frozen=True)
class Attacked:
    """A model under attack.

    Attributes:
        case: The model.
        attack: ``PGD`` on the network itself, ``SmoothAdv`` or ``one-point``.
        epsilon: Budget in l2.
        samples: Draws m of the attack.
        n: Votes of the prediction at the points found.
        steps: Steps of the attack.
    """

    case: Case
    attack: str
    epsilon: float
    samples: int
    n: int
    steps: int = 20


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        setting: Of all figures but ``digits``.
        sigmas: Of the figure ``envelopes`` and of the attacked models.
        epsilons: Of the figures ``envelopes`` and ``epsilon``.
        samples: Draws in training, of the figure ``samples``.
        seeds: Of the figure ``training``; as all figures of one sigma it is at the second of ``sigmas``.
        radii: At which models are attacked.
        m_test: Draws of the attacks.
        predicted: Votes n of the predictions.
        votes: Their numbers where that is the question.
        epsilon: Of all the other figures.
        digits: Setting of the figure ``digits``.
        digits_seeds: Its seeds.
        digits_m_test: Draws of its attacks.
    """

    setting: Setting
    sigmas: tuple[float, ...]
    epsilons: tuple[float, ...]
    samples: tuple[int, ...]
    seeds: int
    radii: tuple[float, ...]
    m_test: tuple[int, ...]
    predicted: int
    votes: tuple[int, ...]
    epsilon: float = 0.5
    digits: Setting = DIGITS
    digits_seeds: int = 3
    digits_m_test: tuple[int, ...] = (1, 8, 32, 128)


SMOKE = replace(DIGITS, train=300, few=150, more=300, epochs=2, warmup=1, tuning=1, images=20, attacked=5, n=100)
SMALL = Setting(
    data="cifar10",
    network="small",
    train=4000,
    few=1000,
    more=4000,
    epochs=8,
    warmup=2,
    tuning=3,
    batch=100,
    lr=4e-3,
    tuning_lr=1e-3,
    every=25,
    images=300,
    attacked=60,
    n=500,
)
PAPER = Setting(
    data="cifar10",
    network="resnet110",
    train=50_000,
    few=10_000,
    more=20_000,
    epochs=150,
    warmup=10,
    tuning=30,
    batch=256,
    lr=0.1,
    tuning_lr=0.001,
    every=20,
    images=500,
    attacked=500,
    n=100_000,
)
WAYS = ("noise", "SmoothAdv-PGD", "SmoothAdv-DDN", "vanilla", "vanilla + noise")
DIGITS_WAYS = ("plain", "vanilla", "noise", "SmoothAdv-PGD", "one-point")

SCALES = {
    "smoke": Scale(
        setting=SMOKE,
        sigmas=(0.12, 0.25),
        epsilons=(0.25, 0.5),
        samples=(1, 2),
        seeds=1,
        radii=(0.1,),
        m_test=(1, 2),
        predicted=100,
        votes=(20, 100),
        digits=SMOKE,
        digits_seeds=2,
        digits_m_test=(1, 2),
    ),
    "small": Scale(
        setting=SMALL,
        sigmas=(0.25, 0.5),
        epsilons=(0.25, 0.5, 1.0),
        samples=(1, 2, 4),
        seeds=2,
        radii=(0.25, 0.5),
        m_test=(1, 8, 32),
        predicted=500,
        votes=(20, 100, 500),
    ),
    "paper": Scale(
        setting=PAPER,
        sigmas=(0.12, 0.25, 0.5, 1.0),
        epsilons=(0.25, 0.5, 1.0, 2.0),
        samples=(1, 2, 4, 8),
        seeds=1,
        radii=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
        m_test=(1, 4, 8, 16, 64, 128),
        predicted=1000,
        votes=(100, 1000, 10_000),
    ),
}
DIFFERS = {
    "smoke": ("scikit-learn's digits and almost no training: a test of the recipe, no evidence on the paper",),
    "small": (
        "a network of two convolutions (0.4 million multiplications an image) for ResNet-110",
        "4000 training images for 50,000, not moved, and 8 epochs of Adam for 150 of SGD",
        "sigma 0.25 and 0.5, epsilon up to 1, m up to 4 in training and 32 in attacks",
        "300 test images for all of them, n = 500 votes for 100,000: no radius above 2.2 sigma",
        "60 of these images are attacked",
    ),
    "paper": ("500 test images for all of them",),
}
ALWAYS_DIFFERS = (
    "no ImageNet",
    "of the steps T in training T = 2 alone, m = 2 where m is not the question, DDN at one epsilon",
    "pre-training and self-training on a substitute: held-back parts of CIFAR-10's training set",
)
PUBLISHED: Mapping[str, Mapping[float, int]] = {  # Table 2, in %: shown beside our figures, for orientation
    "noise": {0.25: 61, 0.5: 43, 0.75: 32, 1.0: 22, 1.25: 17, 1.5: 13, 1.75: 10, 2.0: 7, 2.25: 4},
    "SmoothAdv": {0.25: 73, 0.5: 58, 0.75: 48, 1.0: 38, 1.25: 33, 1.5: 29, 1.75: 24, 2.0: 18, 2.25: 16},
}

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "digits": demo.network,
    "small": lambda: small_cnn(channels=3, size=32),
    "resnet110": lambda: resnet(110).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
}
ATTACKS: Mapping[str, Callable[[Case], Attack]] = {
    "vanilla": lambda case: PGD(epsilon=case.epsilon, steps=case.steps),
    "vanilla + noise": lambda case: PGD(epsilon=case.epsilon, steps=case.steps),
    "SmoothAdv-PGD": lambda case: SmoothAdvPGD(epsilon=case.epsilon, steps=case.steps, samples=case.samples),
    "SmoothAdv-DDN": lambda case: SmoothAdvDDN(epsilon=case.epsilon, steps=case.steps, samples=case.samples),
    "one-point": lambda case: OnePoint(epsilon=case.epsilon, steps=case.steps, samples=case.samples),
}


@dataclass(frozen=True, kw_only=True)
class ThenNoise(Adversarial):
    """Cross-entropy under noise that the attack did not look at."""

    @override
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        with evaluating(model):
            point = self.attack(Smoother(model, self.law, self.num_classes), x, y, generator=generator).point
        return CrossEntropy(self.law)(model, point, y, generator)


def loss(case: Case) -> Loss:
    """What the training of a case descends."""
    law = Gaussian(case.sigma)
    if case.way not in ATTACKS:
        return CrossEntropy(law if case.way == "noise" else None)
    kind = ThenNoise if case.way == "vanilla + noise" else Adversarial
    return kind(attack=ATTACKS[case.way](case), law=law, num_classes=10)


@dataclass(frozen=True)
class Moved:
    """Batches whose images are mirrored or not and shifted by up to 4 pixels, black coming in from the edge."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = np.random.default_rng((self.batches.seed, epoch))
        for x, y in self.batches(epoch):
            size = x.shape[-1]
            rows, columns = (draws.integers(0, 9, (len(x), 1)) + np.arange(size) for _ in range(2))
            columns = np.where(draws.random((len(x), 1)) < 0.5, columns, columns[:, ::-1])
            index = np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]
            padded = functional.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
            moved = padded[tuple(torch.from_numpy(part).to(x.device) for part in index)]
            yield moved.permute(0, 3, 1, 2).contiguous(), y


class Experiment:
    """The data of a setting, and what is measured on it."""

    def __init__(self, setting: Setting, data: Path, device: str, out: Path) -> None:
        self.setting, self.device, self.out = setting, device, out
        parts = demo.digits() if setting.data == "digits" else cifar10(data)
        self.x, self.y, x, y = (part.to(device) for part in parts)
        self.test = x[:: setting.every][: setting.images], y[:: setting.every][: setting.images]

    def settings(self, item: Case | Attacked) -> dict[str, Any]:
        """All that the numbers of an item depend on."""
        return {"item": asdict(item), "setting": asdict(self.setting), "device": self.device}

    def file(self, folder: str, item: Case | Attacked) -> Path:
        """Where weights or votes of an item are kept."""
        (self.out / folder).mkdir(parents=True, exist_ok=True)
        return self.out / folder / sha256(json.dumps(self.settings(item)).encode()).hexdigest()[:12]

    def examples(self, case: Case) -> tuple[Tensor, Tensor]:
        """What a case trains on, fine-tuning included."""
        setting, few = self.setting, self.setting.few
        first, second = slice(few, few + setting.more), slice(few + setting.more, few + 2 * setting.more)
        if case.data in ("self-training", "both"):
            teacher, _ = self.trained(Case("plain", case.sigma, data="few", seed=case.seed))
            guessed = train.pseudo_labels(teacher, self.x[second])
            return torch.cat([self.x[:few], self.x[second]]), torch.cat([self.y[:few], guessed])
        part = {"all": slice(setting.train), "held back": first}.get(case.data, slice(few))
        return self.x[part], self.y[part]

    def trained(self, case: Case) -> tuple[nn.Module, float]:
        """The network of a case, and the seconds that its fastest epoch took."""
        setting, way = self.setting, loss(case)
        x, y = self.examples(case)
        batches = Batches(x, y, setting.batch, case.seed)
        torch.manual_seed(case.seed)
        model = NETWORKS[setting.network]()
        longer, tuning = setting.train / len(x), case.data in ("pre-training", "both")
        epochs, warmup, lr = setting.epochs * longer, setting.warmup * longer, setting.lr
        if tuning:
            before, _ = self.trained(replace(case, data="held back"))
            last = [name for name, _ in model.named_parameters()][-2:]  # weight and bias of the last layer stay new
            model.load_state_dict({k: v for k, v in before.state_dict().items() if k not in last}, strict=False)
            epochs, warmup, lr = setting.tuning * longer, 0, setting.tuning_lr
        model, epochs = model.to(self.device), max(1, round(epochs))
        source: Source = batches
        optimizer: torch.optim.Optimizer
        scheduler: lr_scheduler.LRScheduler | None = None
        if setting.network == "resnet110":
            source = Moved(batches)
            optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
            scheduler = lr_scheduler.StepLR(optimizer, epochs if tuning else -(-epochs // 3))
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr)
            if setting.data != "digits":
                scheduler = lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        history = fit(
            model,
            source,
            way,
            optimizer,
            epochs=epochs,
            warmup=round(warmup) if isinstance(way, Adversarial) else 0,
            seed=case.seed,
            scheduler=scheduler,
            checkpoint=self.file("weights", case),
        )
        return model, min(epoch.seconds for epoch in history)

    def certified(self, case: Case) -> dict[str, Any]:
        """How far each test image is certified to be of its class, and the time of an epoch."""
        model, seconds = self.trained(case)
        x, y = self.test
        certificate, _ = runs.certify(
            Smoother(model, Gaussian(case.sigma), 10),
            list(zip(x, y.tolist(), strict=True)),
            out=self.file("votes", case),
            n=self.setting.n,
            alpha=ALPHA,
            seed=case.seed,
            progress=False,
        )
        label, radius = certificate.label.cpu(), certificate.radius.cpu()
        return {"reach": torch.where(label == y.cpu(), radius, -1.0).tolist(), "seconds": seconds}

    def attacked(self, item: Attacked) -> dict[str, Any]:
        """What an attack leaves of the first test images."""
        model, _ = self.trained(item.case)
        attack: Attack = PGD(epsilon=item.epsilon, steps=item.steps)
        if item.attack != "PGD":
            kind = {"SmoothAdv": SmoothAdvPGD, "one-point": OnePoint}[item.attack]
            attack = kind(epsilon=item.epsilon, steps=item.steps, samples=item.samples)
        x, y = (torch.split(part[: self.setting.attacked], 25) for part in self.test)
        smoother = Smoother(model, Gaussian(item.case.sigma), 10)
        found = attacks.evaluate(smoother, attack, zip(x, y, strict=True), n=item.n, alpha=ALPHA)
        return {
            "right": (found.attacked == found.y).tolist(),
            "abstained": float((found.attacked < 0).double().mean()),
            "refuted": int(found.refuted.sum()),
        }

    def numbers(self, item: Case | Attacked) -> dict[str, Any]:
        """The numbers of an item, computed once."""
        compute = self.certified if isinstance(item, Case) else self.attacked
        return once(self.out / "numbers", self.settings(item), lambda: compute(item))  # type: ignore[arg-type]


def smooth_adv(scale: Scale, sigma: float, **settings: Any) -> Case:
    """SmoothAdv-PGD as it is where nothing else is the question."""
    return replace(Case("SmoothAdv-PGD", sigma, scale.epsilon), **settings)


def grid(scale: Scale) -> list[Case]:
    """The models that envelopes choose from."""
    noise = [Case("noise", sigma) for sigma in scale.sigmas]
    pgd = [smooth_adv(scale, sigma, epsilon=epsilon) for sigma in scale.sigmas for epsilon in scale.epsilons]
    return [*noise, *pgd, *(smooth_adv(scale, sigma, way="SmoothAdv-DDN") for sigma in scale.sigmas)]


def ways(sigma: float, epsilon: float, names: Sequence[str], seeds: int) -> list[Case]:
    """A model for each way of training and seed."""
    return [
        replace(Case(way, sigma, epsilon if way in ATTACKS else 0.0), seed=seed)
        for seed in range(seeds)
        for way in names
    ]


def under_attack(scale: Scale) -> list[Attacked]:
    """Attacks on the models trained with noise: of m draws at each radius, of n votes, and without gradients."""
    n, most, sigma = scale.predicted, scale.m_test[-1], scale.sigmas[1]
    noise = [Case("noise", sigma) for sigma in scale.sigmas]
    curves = [
        Attacked(case, attack, radius, m, n)
        for case in noise
        for radius in scale.radii
        for attack, m in (("PGD", 1), *(("SmoothAdv", m) for m in scale.m_test))
    ]
    middle = scale.radii[len(scale.radii) // 4]
    one = Attacked(Case("noise", sigma), "SmoothAdv", middle, most, n)
    return [*curves, *(replace(one, n=n) for n in scale.votes), replace(one, attack="one-point")]


def figures(scale: Scale) -> dict[str, list[Case | Attacked]]:
    """What each figure is made of."""
    sigma = scale.sigmas[1]
    return {
        "envelopes": [*grid(scale)],
        "training": [*ways(sigma, scale.epsilon, WAYS, scale.seeds)],
        "samples": [smooth_adv(scale, sigma, samples=m) for m in scale.samples],
        "epsilon": [smooth_adv(scale, sigma, epsilon=epsilon) for epsilon in scale.epsilons],
        "attack": [*grid(scale), *under_attack(scale)],
        "data": [smooth_adv(scale, sigma, data=d) for d in ("few", "pre-training", "self-training", "both")],
        "digits": digits(scale),
    }


def digits(scale: Scale) -> list[Case | Attacked]:
    """What the figure ``digits`` is made of; the first seed is attacked as well."""
    cases = ways(0.25, 128 / 255, DIGITS_WAYS, scale.digits_seeds)
    middle, n = largest(0.25, scale.digits.n) / 2, scale.digits.n
    seen = [case for case in cases if case.seed == 0 and case.way in ("noise", "SmoothAdv-PGD")]
    return [*cases, *(Attacked(case, "SmoothAdv", middle, m, n) for case in seen for m in scale.digits_m_test)]


def largest(sigma: float, n: int) -> float:
    """The largest radius that n votes can certify."""
    return float(Gaussian(sigma).radius(bounds.clopper_pearson_lower(n, n, ALPHA)))


def quarters(sigma: float, n: int) -> list[float]:
    """Nothing, a quarter, a half and three quarters of the largest radius."""
    return [part * largest(sigma, n) / 4 for part in range(4)]


Found = Mapping[Case | Attacked, Mapping[str, Any]]
Hits = NDArray[Any]
"""Whether, or in which share of cases, each test image is what is asked for."""


@dataclass(frozen=True)
class Gap:
    """By how much one thing has more hits than another on the same images, and its standard error."""

    value: float
    error: float

    @classmethod
    def between(cls, first: Sequence[Hits], second: Sequence[Hits]) -> "Gap":
        """From the hits of each seed."""
        gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
        images = gaps.mean(axis=0)
        variance = images.var(ddof=1) / len(images)
        if len(gaps) > 1:
            variance += gaps.mean(axis=1).var(ddof=1) / len(gaps)
        return cls(float(images.mean()), float(np.sqrt(variance)))

    def told(self, looks: int = 1) -> bool:
        """Whether chance explains it, or any other of as many looks, with a probability below 5 %."""
        return abs(self.value) > NormalDist().inv_cdf(1 - 0.025 / looks) * self.error

    def __str__(self) -> str:
        return f"{self.value:+.3f} +- {self.error:.3f}"


def said(gaps: Mapping[str, Gap]) -> str:
    """Of a claim that gaps are positive: ``differs`` if one is found to be negative, else ``agrees`` if one is found
    to be positive, and the numbers."""
    signs = [gap.value > 0 for gap in gaps.values() if gap.told(len(gaps))]
    heading = word(all(signs)) if signs else "cannot tell"
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


def gaps_of_best(found: Found, above: Sequence[Case], below: Sequence[Case], radii: Sequence[float]) -> dict[str, Gap]:
    """Between the best of two families at each radius."""
    return {
        f"r = {r:.3g}": Gap.between([hits(found, best(found, above, r), r)], [hits(found, best(found, below, r), r)])
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
        "the best of SmoothAdv certifies more than the best of noise": said(gaps_of_best(found, ours, noise, radii))
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
        f"r = {far:.3g}, high - low": Gap.between([hits(found, high, far)], [hits(found, low, far)]),
    }
    verdicts["more noise certifies larger radii and fewer small ones"] = said(traded)

    def at_linf(case: Case) -> Hits:
        reach = np.asarray(found[case]["reach"])
        return (reach >= 0) & (np.asarray(bounds.linf_radius(reach.clip(min=0), dim)) >= LINF)

    first, second = (max(cases, key=lambda case: float(at_linf(case).mean())) for cases in (ours, noise))
    gap = Gap.between([at_linf(first)], [at_linf(second)])
    verdicts["SmoothAdv certifies more in linf at 2/255, by conversion"] = (
        f"{said({'2/255': gap})}: {at_linf(first).mean():.3f} and {at_linf(second).mean():.3f}, "
        f"accuracy {hits(found, first, 0.0).mean():.3f} and {hits(found, second, 0.0).mean():.3f}"
    )
    return verdicts


def compared(found: Found, first: str, second: str, radii: Sequence[float]) -> dict[str, Gap]:
    """Two ways of training, over the seeds."""
    of_way = [[case for case in found if isinstance(case, Case) and case.way == way] for way in (first, second)]
    return {f"r = {r:.3g}": Gap.between(*([hits(found, case, r) for case in cases] for cases in of_way)) for r in radii}


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
    one, most = (smooth_adv(scale, scale.sigmas[1], samples=m) for m in (scale.samples[0], scale.samples[-1]))
    gaps = gaps_of_best(found, [most], [one], quarters(scale.sigmas[1], scale.setting.n)[1:])
    return {f"training with m = {most.samples} certifies more than with m = {one.samples}": said(gaps)}


def judged_epsilon(scale: Scale, found: Found) -> dict[str, str]:
    """Appendix C.3."""
    radii = quarters(scale.sigmas[1], scale.setting.n)
    low, high = (smooth_adv(scale, scale.sigmas[1], epsilon=e) for e in (scale.epsilons[0], scale.epsilons[-1]))
    change = f"epsilon = {high.epsilon:g} for {low.epsilon:g}"
    return {
        f"{change}: less accuracy at r = 0": said(gaps_of_best(found, [low], [high], radii[:1])),
        f"{change}: more at a large radius": said(gaps_of_best(found, [high], [low], radii[3:])),
    }


def judged_attack(scale: Scale, found: Found) -> dict[str, str]:
    """Figure 3 and Appendices C.4, C.5 and C.6, and Figure 1's remark on the empirical accuracy of noise training."""
    items = under_attack(scale)
    most, n, few = scale.m_test[-1], scale.predicted, scale.setting.attacked

    def left(attack: str, m: int, **settings: Any) -> Hits:
        """Share of the attacked settings in which an image stays right."""
        asked = {"attack": attack, "samples": m, "n": n} | settings
        same = [item for item in items if all(getattr(item, name) == value for name, value in asked.items())]
        shares: Hits = np.mean([found[item]["right"] for item in dict.fromkeys(same)], axis=0)
        return shares

    def one(attack: str, votes: int) -> Mapping[str, Any]:
        return found[replace(items[-1], attack=attack, n=votes)]

    ours = families(scale)["SmoothAdv"]
    above = {}
    for r in scale.radii:
        certified = hits(found, best(found, ours, r), r)[:few]
        empirical = max((left("SmoothAdv", most, epsilon=r, case=Case("noise", s)) for s in scale.sigmas), key=np.mean)
        above[f"r = {r:.3g}"] = Gap.between([certified], [empirical])
    refuted = sum(numbers["refuted"] for item, numbers in found.items() if isinstance(item, Attacked))
    many, fewest = one("SmoothAdv", scale.votes[-1]), one("SmoothAdv", scale.votes[0])
    return {
        f"an attack of m = {scale.m_test[0]} is weaker than PGD on the network": said(
            {"left": Gap.between([left("SmoothAdv", scale.m_test[0])], [left("PGD", 1)])}
        ),
        f"an attack of m = {most} is stronger than one of m = {scale.m_test[0]}": said(
            {"left": Gap.between([left("SmoothAdv", scale.m_test[0])], [left("SmoothAdv", most)])}
        ),
        "no attack refutes a certificate": f"{word(refuted == 0)} ({refuted} of {len(dict.fromkeys(items)) * few})",
        "SmoothAdv certifies more than noise training has under attack": said(above),
        f"n = {scale.votes[-1]} votes predict better than {scale.votes[0]}": said(
            {"right": Gap.between([np.array(many["right"])], [np.array(fewest["right"])])}
        )
        + f": abstained {many['abstained']:.3f} and {fewest['abstained']:.3f}",
        f"the one-point attack of m = {most} is weaker than SmoothAdv-PGD of as many": said(
            {"left": Gap.between([np.array(one("one-point", n)["right"])], [np.array(one("SmoothAdv", n)["right"])])}
        ),
    }


def judged_data(scale: Scale, found: Found) -> dict[str, str]:
    """Section 4.2."""
    sigma = scale.sigmas[1]
    few, *more = (smooth_adv(scale, sigma, data=d) for d in ("few", "pre-training", "self-training", "both"))
    return {
        f"{'pre-training and self-training' if case.data == 'both' else case.data} certifies more": said(
            gaps_of_best(found, [case], [few], quarters(sigma, scale.setting.n)[1:])
        )
        for case in more
    }


def judged_digits(scale: Scale, found: Found) -> dict[str, str]:
    """The ways of training again, and the claims of Chen et al. 2021 on the one-point estimator."""
    verdicts = {f"digits: {k}": v for k, v in judged_training(found, 0.25, scale.digits.n).items()}
    seconds = {
        way: min(found[case]["seconds"] for case in found if isinstance(case, Case) and case.way == way)
        for way in ("SmoothAdv-PGD", "one-point")
    }
    faster = seconds["SmoothAdv-PGD"] / seconds["one-point"]
    (gap,) = compared(found, "one-point", "SmoothAdv-PGD", quarters(0.25, scale.digits.n)[2:3]).values()
    verdicts["digits: one-point trains 2 to 3 times faster"] = f"{word(2 <= faster <= 3)} ({faster:.2f} times)"
    verdicts["digits: one-point certifies as much"] = f"{word(not gap.told())} ({gap})"
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
    """All numbers of a figure: certified accuracy at quarters of the largest radius, accuracy under attack."""
    n = (scale.digits if figure == "digits" else scale.setting).n
    lines = [
        f"\n{figure}: accuracy certified at 0, 1/4, 1/2, 3/4 of the largest radius; right and abstained if attacked"
    ]
    for item, numbers in found.items():
        if isinstance(item, Case):
            shown = "".join(f"{a:8.3f}" for a in accuracies(found, item, quarters(item.sigma, n)))
            lines.append(f"{name(item):78}{shown}   {1e3 * numbers['seconds']:.0f} ms an epoch")
        else:
            lines.append(f"{name(item):78}{mean(numbers['right']):8.3f}{numbers['abstained']:8.3f}")
    if figure == "envelopes":
        radii = table2(scale)
        lines.append("best of the models at r = " + ", ".join(f"{r:g}" for r in radii) + "; in Table 2")
        for way, family in families(scale).items():
            ours = "".join(f"{a:8.3f}" for a in envelope(found, family, radii))
            lines.append(f"{way:20}{ours};" + "".join(f"{PUBLISHED[way][r] / 100:8.2f}" for r in radii))
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
            each.plot(radii, envelope(found, of_sigma, radii), style, color=f"C{number}", label=label)
            lone = chosen if way == "SmoothAdv" else of_sigma[0]
            single.plot(radii, accuracies(found, lone, radii), style, color=f"C{number}", label=label)
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
            max(mean(found[item]["right"]) for item in of_kind if item.epsilon == radius) for radius in scale.radii
        ]
        label = "PGD on the network" if attack == "PGD" else f"SmoothAdv, m = {m}"
        over_radii.plot(scale.radii, shown, "o-" if attack == "SmoothAdv" else "s--", color=f"C{number}", label=label)
    certified = [max(hits(found, Case("noise", s), r)[:few].mean() for s in scale.sigmas) for r in scale.radii]
    over_radii.plot(scale.radii, certified, "k^-", label="certified")
    over_radii.set(xlabel="l2 radius", ylabel="accuracy", title="noise training under attack", ylim=(0, None))
    over_radii.legend(fontsize=7)
    attacked = [found[replace(items[-1], attack="SmoothAdv", n=votes)] for votes in scale.votes]
    over_votes.plot(scale.votes, [mean(numbers["right"]) for numbers in attacked], "o-", label="right")
    over_votes.plot(scale.votes, [numbers["abstained"] for numbers in attacked], "o:", label="abstained")
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
        rows = [accuracies(found, other, radii) for other in cases if replace(other, seed=0) == case]
        label = {"samples": f"m = {case.samples}", "epsilon": f"epsilon = {case.epsilon:g}", "data": case.data}
        (line,) = axis.plot(radii, np.mean(rows, axis=0), label=label.get(figure, case.way))
        axis.fill_between(radii, np.min(rows, axis=0), np.max(rows, axis=0), color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="l2 radius", ylabel="certified accuracy", ylim=(0, None), title=f"sigma = {cases[0].sigma:g}")
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


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    began = time.perf_counter()
    parser = options(__doc__, "salman2019")
    parser.add_argument("--figures", nargs="*", metavar="FIGURE", help="only these, e.g. envelopes attack")
    asked = parser.parse_args(arguments)
    scale, out = SCALES[asked.scale], asked.out / asked.scale
    plan = figures(scale)
    wanted = list(plan) if asked.figures is None else asked.figures
    if unknown := sorted(set(wanted) - set(plan)):
        parser.error(f"unknown figures {unknown}, known are {list(plan)}")
    verdicts: dict[str, str] = {}
    lines: list[str] = []
    with tqdm(total=sum(len(plan[figure]) for figure in wanted)) as bar:
        for figure in wanted:
            setting = scale.digits if figure == "digits" else scale.setting
            experiment = Experiment(setting, asked.data, asked.device, out)
            found: dict[Case | Attacked, Mapping[str, Any]] = {}
            for item in plan[figure]:
                bar.set_description(f"{figure}: {name(item)}")
                found[item] = experiment.numbers(item)
                bar.update()
            draw(figure, scale, found, out / f"{figure}.png")
            verdicts |= judged(figure, scale, found)
            lines += table(figure, scale, found)
    (out / "tables.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines) + "\n")
    report(out, asked.scale, (*ALWAYS_DIFFERS, *DIFFERS[asked.scale]), verdicts, time.perf_counter() - began)
    return verdicts


if __name__ == "__main__":
    main()
