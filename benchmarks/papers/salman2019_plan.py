"""What is trained and attacked for each figure of ``benchmarks.papers.salman2019``, and at which
scale."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsfl import bounds
from rsfl.noise import Gaussian

ALPHA = 0.001


@dataclass(frozen=True)
class Setting:
    """What all models of a figure share: the data, the network, how long it trains, how it is
    certified.

    Attributes:
        data: ``digits`` or ``cifar10``.
        network: One of ``NETWORKS``.
        train: Training images, the first ones.
        few: Labelled images of the figure ``data``, the first ones.
        more: The images after those that pre-training takes, and as many after these without
            labels.
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
        way: one of ``UNATTACKED``, or an attack that the recipe knows.
        sigma: Standard deviation of the noise.
        epsilon: Budget of the attack in l2; 0 where there is none.
        samples: Draws m of the attack.
        steps: Its steps T.
        data: ``all`` of the training images, or of those of the figure ``data``: the ``few``
            labelled, those ``held back``, ``pre-training`` on these and then the few,
            ``self-training`` on unlabelled ones, or ``both``.
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
        seeds: Of the figure ``training``; as all figures of one sigma it is at the second of
            ``sigmas``.
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


SMOKE = replace(
    DIGITS, train=300, few=150, more=300, epochs=2, warmup=1, tuning=1, images=20, attacked=5, n=100
)
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
MEDIUM = Setting(
    data="cifar10",
    network="resnet20",
    train=50_000,
    few=10_000,
    more=20_000,
    epochs=20,
    warmup=4,
    tuning=4,
    batch=256,
    lr=0.1,
    tuning_lr=0.001,
    every=20,
    images=500,
    attacked=100,
    n=10_000,
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
UNATTACKED = ("plain", "noise")
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
    "medium": Scale(
        setting=MEDIUM,
        sigmas=(0.12, 0.25, 0.5),
        epsilons=(0.25, 0.5, 1.0),
        samples=(1, 2, 4),
        seeds=1,
        radii=(0.25, 0.5, 0.75),
        m_test=(1, 8, 32),
        predicted=1000,
        votes=(100, 1000),
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
    "smoke": (
        "scikit-learn's digits and almost no training: a test of the recipe, no evidence on the "
        "paper",
    ),
    "small": (
        "a network of two convolutions (0.4 million multiplications an image) for ResNet-110",
        "4000 training images for 50,000, not moved, and 8 epochs of Adam for 150 of SGD",
        "sigma 0.25 and 0.5, epsilon up to 1, m up to 4 in training and 32 in attacks",
        "300 test images for all of them, n = 500 votes for 100,000: no radius above 2.2 sigma",
        "60 of these images are attacked",
    ),
    "medium": (
        "ResNet-20 for ResNet-110",
        "20 epochs for 150",
        "500 test images for all of them, n = 10,000 votes for 100,000: no radius above 3.1 sigma",
        "100 of these images are attacked",
    ),
    "paper": ("500 test images for all of them",),
}
ALWAYS_DIFFERS = (
    "no ImageNet",
    "of the steps T in training T = 2 alone, m = 2 where m is not the question, DDN at one epsilon",
    "pre-training and self-training on a substitute: held-back parts of CIFAR-10's training set",
)


def smooth_adv(scale: Scale, sigma: float, **settings: Any) -> Case:
    """SmoothAdv-PGD as it is where nothing else is the question."""
    return replace(Case("SmoothAdv-PGD", sigma, scale.epsilon), **settings)


def grid(scale: Scale) -> list[Case]:
    """The models that envelopes choose from."""
    noise = [Case("noise", sigma) for sigma in scale.sigmas]
    pgd = [
        smooth_adv(scale, sigma, epsilon=epsilon)
        for sigma in scale.sigmas
        for epsilon in scale.epsilons
    ]
    return [
        *noise,
        *pgd,
        *(smooth_adv(scale, sigma, way="SmoothAdv-DDN") for sigma in scale.sigmas),
    ]


def ways(sigma: float, epsilon: float, names: Sequence[str], seeds: int) -> list[Case]:
    """A model for each way of training and seed."""
    return [
        replace(Case(way, sigma, 0.0 if way in UNATTACKED else epsilon), seed=seed)
        for seed in range(seeds)
        for way in names
    ]


def under_attack(scale: Scale) -> list[Attacked]:
    """Attacks on the models trained with noise: of m draws at each radius, of n votes, and without
    gradients."""
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
        "data": [
            smooth_adv(scale, sigma, data=d)
            for d in ("few", "pre-training", "self-training", "both")
        ],
        "digits": digits(scale),
    }


def digits(scale: Scale) -> list[Case | Attacked]:
    """What the figure ``digits`` is made of; the first seed is attacked as well."""
    cases = ways(0.25, 128 / 255, DIGITS_WAYS, scale.digits_seeds)
    middle, n = largest(0.25, scale.digits.n) / 2, scale.digits.n
    seen = [case for case in cases if case.seed == 0 and case.way in ("noise", "SmoothAdv-PGD")]
    return [
        *cases,
        *(Attacked(case, "SmoothAdv", middle, m, n) for case in seen for m in scale.digits_m_test),
    ]


def largest(sigma: float, n: int) -> float:
    """The largest radius that n votes can certify."""
    return float(Gaussian(sigma).radius(bounds.clopper_pearson_lower(n, n, ALPHA)))


def quarters(sigma: float, n: int) -> list[float]:
    """Nothing, a quarter, a half and three quarters of the largest radius."""
    return [part * largest(sigma, n) / 4 for part in range(4)]
