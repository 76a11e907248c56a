"""LeNet on MNIST, the published yardstick of certified training: six losses at three levels of
noise.

``python -m benchmarks.papers.mnist --data DIR --scale paper --methods noise --sigmas 0.5`` trains
as the public code behind the SmoothMix and Consistency papers does (Jeong and Shin 2020, Jeong et
al. 2021), certifies every 20th test image, and holds the average certified radius against the
published per-image logs of five seeds:

- all methods: SGD with momentum .9 and weight decay 1e-4, batches of 256, 90 epochs, the learning
  rate .01 divided by ten after 31 and 61 of them, images in [0, 1] without augmentation;
- SmoothAdv, Consistency and SmoothMix take a step for every m-th part of a batch, under m noises:
  that is ``Batches(size=256 // m)``;
- MACER leaves its hinge out as long as the learning rate is .01; the budget of SmoothAdv and the
  weight of SmoothMix grow over the first ten epochs.

The published figures were computed from the logs in the public code's repository, of the same 500
images and n = 100,000 votes; those for n = 10,000 and 1000 are what a part of the same votes, drawn
at random, gives in the mean. One training of ours agrees if its average certified radius is within
two standard errors of the published mean: the error is that of one more seed, and of our votes.

Weights, votes and numbers are kept in ``--out``: what is there is not computed again.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from tqdm.auto import tqdm

from benchmarks.networks import lenet
from benchmarks.papers.recipe import key, mnist, once, options, report, word
from rsfl import demo, runs
from rsfl.attacks import SmoothAdvPGD
from rsfl.noise import Gaussian
from rsfl.smooth import Smoother
from rsfl.train import (
    MACER,
    Adversarial,
    Batches,
    Consistency,
    CrossEntropy,
    Loss,
    SmoothMix,
    Stability,
    fit,
)

ALPHA = 0.001
METHODS = ("noise", "Stability", "Consistency", "MACER", "SmoothAdv", "SmoothMix")
SIGMAS = (0.5, 0.25, 1.0)
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
PARTS: Mapping[str, int] = {"SmoothAdv": 4, "Consistency": 2, "SmoothMix": 4}
"""In how many steps a batch is taken, under as many noises; 1 for the others."""
WARMUP: Mapping[str, int] = {"SmoothAdv": 10, "SmoothMix": 10, "MACER": 31}
"""Epochs after which the loss is its own, of 90."""


@dataclass(frozen=True)
class Published:
    """What the public logs say of a method at a sigma: every 20th test image.

    Attributes:
        seeds: Trainings.
        whole: Average certified radius at n = 100,000: mean over the seeds, standard deviation.
        tenth: The same at n = 10,000, in the mean over which tenth of the votes it is.
        hundredth: The same at n = 1000.
        shares: Certified accuracy at ``RADII``, n = 100,000, mean over the seeds.
    """

    seeds: int
    whole: tuple[float, float]
    tenth: tuple[float, float]
    hundredth: tuple[float, float]
    shares: tuple[float, ...]

    def at(self, n: int) -> tuple[float, float] | None:
        """Mean and standard deviation for so many votes; None for a number nobody asked about."""
        return {100_000: self.whole, 10_000: self.tenth, 1000: self.hundredth}.get(n)


PUBLISHED: Mapping[tuple[str, float], Published] = {
    ("noise", 0.25): Published(
        5,
        (0.8984, 0.0014),
        (0.7622, 0.0010),
        (0.5922, 0.0007),
        (0.989, 0.973, 0.954, 0.91, 0.0, 0.0, 0.0, 0.0),
    ),
    ("noise", 0.5): Published(
        5,
        (1.5370, 0.0046),
        (1.3727, 0.0037),
        (1.1089, 0.0027),
        (0.984, 0.968, 0.956, 0.933, 0.89, 0.656, 0.0, 0.0),
    ),
    ("noise", 1.0): Published(
        5,
        (1.6062, 0.0029),
        (1.5486, 0.0027),
        (1.3817, 0.0024),
        (0.954, 0.929, 0.9, 0.86, 0.794, 0.586, 0.316, 0.11),
    ),
    ("Stability", 0.25): Published(
        5,
        (0.9044, 0.0012),
        (0.7664, 0.0012),
        (0.5949, 0.0010),
        (0.992, 0.977, 0.956, 0.922, 0.0, 0.0, 0.0, 0.0),
    ),
    ("Stability", 0.5): Published(
        5,
        (1.5499, 0.0048),
        (1.3831, 0.0034),
        (1.1160, 0.0022),
        (0.988, 0.97, 0.956, 0.935, 0.896, 0.664, 0.0, 0.0),
    ),
    ("Stability", 1.0): Published(
        5,
        (1.6238, 0.0030),
        (1.5655, 0.0029),
        (1.3965, 0.0023),
        (0.954, 0.934, 0.906, 0.862, 0.799, 0.598, 0.326, 0.112),
    ),
    ("Consistency", 0.25): Published(
        5,
        (0.9179, 0.0015),
        (0.7745, 0.0011),
        (0.5992, 0.0008),
        (0.993, 0.98, 0.964, 0.946, 0.0, 0.0, 0.0, 0.0),
    ),
    ("Consistency", 0.5): Published(
        5,
        (1.6330, 0.0023),
        (1.4341, 0.0017),
        (1.1411, 0.0011),
        (0.983, 0.972, 0.962, 0.946, 0.918, 0.77, 0.0, 0.0),
    ),
    ("Consistency", 1.0): Published(
        6,
        (1.7308, 0.0016),
        (1.6602, 0.0013),
        (1.4673, 0.0009),
        (0.936, 0.922, 0.885, 0.847, 0.786, 0.628, 0.41, 0.21),
    ),
    ("MACER", 0.25): Published(
        5,
        (0.9078, 0.0011),
        (0.7677, 0.0009),
        (0.5949, 0.0010),
        (0.99, 0.976, 0.955, 0.932, 0.0, 0.0, 0.0, 0.0),
    ),
    ("MACER", 0.5): Published(
        5,
        (1.5712, 0.0060),
        (1.3909, 0.0043),
        (1.1151, 0.0029),
        (0.982, 0.97, 0.954, 0.93, 0.886, 0.713, 0.0, 0.0),
    ),
    ("MACER", 1.0): Published(
        5,
        (1.5922, 0.0079),
        (1.5251, 0.0081),
        (1.3426, 0.0083),
        (0.901, 0.868, 0.823, 0.774, 0.714, 0.553, 0.391, 0.193),
    ),
    ("SmoothAdv", 0.25): Published(
        5,
        (0.9207, 0.0020),
        (0.7753, 0.0016),
        (0.5989, 0.0012),
        (0.988, 0.978, 0.968, 0.954, 0.0, 0.0, 0.0, 0.0),
    ),
    ("SmoothAdv", 0.5): Published(
        5,
        (1.6697, 0.0019),
        (1.4512, 0.0016),
        (1.1477, 0.0010),
        (0.983, 0.974, 0.96, 0.949, 0.926, 0.803, 0.0, 0.0),
    ),
    ("SmoothAdv", 1.0): Published(
        5,
        (1.7713, 0.0019),
        (1.6969, 0.0017),
        (1.4960, 0.0012),
        (0.949, 0.928, 0.896, 0.855, 0.8, 0.636, 0.43, 0.229),
    ),
    ("SmoothMix", 0.25): Published(
        5,
        (0.9215, 0.0010),
        (0.7765, 0.0006),
        (0.6000, 0.0003),
        (0.99, 0.98, 0.971, 0.955, 0.0, 0.0, 0.0, 0.0),
    ),
    ("SmoothMix", 0.5): Published(
        5,
        (1.6775, 0.0009),
        (1.4520, 0.0006),
        (1.1459, 0.0003),
        (0.981, 0.971, 0.962, 0.944, 0.919, 0.802, 0.0, 0.0),
    ),
    ("SmoothMix", 1.0): Published(
        5,
        (1.8077, 0.0019),
        (1.7189, 0.0015),
        (1.4950, 0.0015),
        (0.925, 0.904, 0.869, 0.826, 0.771, 0.624, 0.445, 0.3),
    ),
}


@dataclass(frozen=True)
class Setting:
    """What all models share.

    Attributes:
        data: ``mnist``, or ``digits`` magnified to the same size.
        train: Training images, the first ones.
        epochs: Epochs of training.
        drops: After which of them the learning rate falls to a tenth.
        every: Of the test images every how many is certified.
        images: How many at most.
    """

    data: str
    train: int
    epochs: int
    drops: tuple[int, ...]
    every: int
    images: int


@dataclass(frozen=True)
class Case:
    """One model. The noise is that of its certificates as well.

    Attributes:
        method: One of ``METHODS``.
        sigma: Standard deviation of the noise.
        seed: Of initial weights, order, noise and votes.
    """

    method: str
    sigma: float
    seed: int = 0


SCALES: Mapping[str, tuple[Setting, int]] = {
    "smoke": (Setting("digits", 200, 2, (1,), 20, 20), 100),
    "small": (Setting("mnist", 10_000, 9, (3, 6), 100, 100), 1000),
    "paper": (Setting("mnist", 60_000, 90, (31, 61), 20, 500), 100_000),
}
"""Setting and number of votes."""
DIFFERS: Mapping[str, tuple[str, ...]] = {
    "smoke": ("scikit-learn's digits, magnified", "2 epochs", "20 images, n = 100"),
    "small": ("10,000 training images", "9 epochs", "100 images, n = 1000"),
    "paper": (),
}
"""What is other than in the paper."""


def loss(case: Case) -> Loss:
    """What the training of a case descends, at the published settings."""
    sigma, law = case.sigma, Gaussian(case.sigma)
    if case.method == "Stability":
        return Stability(law=law, weight=2.0)
    if case.method == "Consistency":
        return Consistency(law=law, weight=10.0 if sigma <= 0.25 else 5.0)
    if case.method == "MACER":
        return MACER(law=law, weight=16.0 if sigma <= 0.5 else 6.0)
    if case.method == "SmoothAdv":  # epsilon 255 of a code that divides by 256
        attack = SmoothAdvPGD(epsilon=255 / 256, steps=10, samples=PARTS[case.method])
        return Adversarial(attack=attack, law=law, num_classes=10)
    if case.method == "SmoothMix":
        steps = {0.25: 2, 0.5: 4, 1.0: 8}[sigma]
        return SmoothMix(law=law, num_classes=10, steps=steps, samples=PARTS[case.method])
    return CrossEntropy(law)


class Experiment:
    """The data of a setting, and what is trained and certified on it."""

    def __init__(self, setting: Setting, data: Path, out: Path, device: str = "cpu") -> None:
        self.setting, self.out, self.device = setting, out, device
        x, y, test_x, test_y = self._data(data)
        self.x, self.y = (part[: setting.train].to(device) for part in (x, y))
        self.test_x = test_x[:: setting.every][: setting.images]
        self.test_y = test_y[:: setting.every][: setting.images]

    def _data(self, data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.setting.data == "mnist":
            x, y, test_x, test_y = mnist(data)
            return x.float(), y, test_x.float(), test_y
        x, y, test_x, test_y = demo.digits()
        return functional.interpolate(x, 28), y, functional.interpolate(test_x, 28), test_y

    def settings(self, case: Case) -> dict[str, Any]:
        """All that the weights of a case depend on."""
        there = {"case": asdict(case), "setting": asdict(self.setting)}
        return there if self.device == "cpu" else there | {"device": self.device}

    def file(self, folder: str, settings: Mapping[str, Any]) -> Path:
        """Where weights or votes of these settings are kept."""
        (self.out / folder).mkdir(parents=True, exist_ok=True)
        return self.out / folder / key(settings)

    def trained(self, case: Case) -> nn.Module:
        """The network of a case."""
        settings = self.settings(case)
        torch.manual_seed(case.seed)
        model = lenet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = model.to(self.device)
        optimizer = SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        fit(
            model,
            Batches(self.x, self.y, 256 // PARTS.get(case.method, 1), case.seed),
            loss(case),
            optimizer,
            epochs=self.setting.epochs,
            warmup=round(WARMUP.get(case.method, 0) * self.setting.epochs / 90),
            seed=case.seed,
            scheduler=MultiStepLR(optimizer, self.setting.drops),
            checkpoint=self.file("weights", settings),
        )
        return model

    def certified(self, case: Case, n: int) -> dict[str, Any]:
        """How far each test image is certified to be of its class; -1 where it is not."""
        settings = self.settings(case) | {"n": n}

        def compute() -> dict[str, Any]:
            certificate, _ = runs.certify(
                Smoother(self.trained(case), Gaussian(case.sigma), 10),
                list(zip(self.test_x, self.test_y.tolist(), strict=True)),
                out=self.file("votes", settings),
                n=n,
                alpha=ALPHA,
                seed=case.seed,
            )
            right = certificate.label.cpu() == self.test_y
            return {"reach": torch.where(right, certificate.radius.cpu(), -1.0).tolist()}

        return once(self.out / "numbers", settings, compute)


def judged(case: Case, n: int, reach: Sequence[float]) -> tuple[float, float, str]:
    """Average certified radius, the standard error of its distance to the published mean, and
    whether it agrees; NaN and nothing where nothing is published."""
    radius = np.maximum(reach, 0)
    found = PUBLISHED[case.method, case.sigma]
    there = found.at(n)
    if there is None or len(reach) != 500:
        return float(radius.mean()), math.nan, "not compared"
    mean, spread = there
    p = stats.norm.cdf(radius / case.sigma)
    slope = case.sigma / stats.norm.pdf(stats.norm.ppf(p))
    votes = np.sqrt((slope**2 * p * (1 - p) / n).sum()) / len(radius)
    error = math.hypot(spread * math.sqrt(1 + 1 / found.seeds), votes)
    return float(radius.mean()), error, word(abs(radius.mean() - mean) <= 2 * error)


def line(case: Case, n: int, reach: Sequence[float]) -> str:
    """A row of the table: ours, and what is published."""
    mean, error, said = judged(case, n, reach)
    shares = " ".join(f"{np.mean(np.array(reach) >= r):.3f}" for r in RADII)
    row = f"{case.method:12} {case.sigma:<5} seed {case.seed}  ACR {mean:.4f}  {shares}"
    if math.isnan(error):
        return row
    found = PUBLISHED[case.method, case.sigma]
    there = found.at(n) or found.whole
    shares = " ".join(f"{share:.3f}" for share in found.shares)
    return f"{row}\n{'published':25}  ACR {there[0]:.4f}  {shares}\n{'':25}  {said}, +- {error:.4f}"


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    began = time.perf_counter()
    parser = options(__doc__, "mnist")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--sigmas", nargs="*", type=float, choices=SIGMAS, default=SIGMAS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--votes", type=int, help="votes an image, in place of the scale's")
    parser.add_argument("--train-only", action="store_true", help="certify nothing")
    asked = parser.parse_args(arguments)
    setting, n = SCALES[asked.scale]
    n = asked.votes or n
    out = asked.out / asked.scale
    experiment = Experiment(setting, asked.data, out, asked.device)
    cases = [
        Case(method, sigma, seed)
        for seed in range(asked.seeds)
        for method in asked.methods
        for sigma in asked.sigmas
    ]
    verdicts, lines = {}, []
    for case in tqdm(cases):
        if asked.train_only:
            experiment.trained(case)
            continue
        reach = experiment.certified(case, n)["reach"]
        verdicts[f"{case.method} {case.sigma} seed {case.seed}"] = judged(case, n, reach)[2]
        lines.append(line(case, n, reach))
    if lines:
        (out / "tables.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))
    report(out, asked.scale, DIFFERS[asked.scale], verdicts, time.perf_counter() - began)
    return verdicts


if __name__ == "__main__":
    main()
