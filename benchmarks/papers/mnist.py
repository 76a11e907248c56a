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

Weights, votes and numbers are kept in ``--out``: what is there is not computed again.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from tqdm.auto import tqdm

from benchmarks.networks import lenet
from benchmarks.papers.recipe import key, mnist, once, options
from rsfl import demo, runs
from rsfl.noise import Gaussian
from rsfl.smooth import Smoother
from rsfl.train import Batches, CrossEntropy, Loss, fit

ALPHA = 0.001
METHODS = ("noise",)
SIGMAS = (0.5, 0.25, 1.0)
PARTS: Mapping[str, int] = {"SmoothAdv": 4, "Consistency": 2, "SmoothMix": 4}
"""In how many steps a batch is taken, under as many noises; 1 for the others."""


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
    "smoke": (Setting("digits", 300, 2, (1,), 20, 20), 100),
    "small": (Setting("mnist", 10_000, 9, (3, 6), 100, 100), 1000),
    "paper": (Setting("mnist", 60_000, 90, (31, 61), 20, 500), 100_000),
}
"""Setting and number of votes."""


def loss(case: Case) -> Loss:
    """What the training of a case descends, at the published settings."""
    return CrossEntropy(Gaussian(case.sigma))


class Experiment:
    """The data of a setting, and what is trained and certified on it."""

    def __init__(self, setting: Setting, data: Path, out: Path) -> None:
        self.setting, self.out = setting, out
        x, y, test_x, test_y = self._data(data)
        self.x, self.y = x[: setting.train], y[: setting.train]
        self.test_x = test_x[:: setting.every][: setting.images]
        self.test_y = test_y[:: setting.every][: setting.images]

    def _data(self, data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.setting.data == "mnist":
            x, y, test_x, test_y = mnist(data)
            return x.float(), y, test_x.float(), test_y
        x, y, test_x, test_y = demo.digits()
        return functional.interpolate(x, 28), y, functional.interpolate(test_x, 28), test_y

    def file(self, folder: str, settings: Mapping[str, Any]) -> Path:
        """Where weights or votes of these settings are kept."""
        (self.out / folder).mkdir(parents=True, exist_ok=True)
        return self.out / folder / key(settings)

    def trained(self, case: Case) -> nn.Module:
        """The network of a case."""
        settings = {"case": asdict(case), "setting": asdict(self.setting)}
        torch.manual_seed(case.seed)
        model = lenet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        fit(
            model,
            Batches(self.x, self.y, 256 // PARTS.get(case.method, 1), case.seed),
            loss(case),
            optimizer,
            epochs=self.setting.epochs,
            seed=case.seed,
            scheduler=MultiStepLR(optimizer, self.setting.drops),
            checkpoint=self.file("weights", settings),
        )
        return model

    def certified(self, case: Case, n: int) -> dict[str, Any]:
        """How far each test image is certified to be of its class; -1 where it is not."""
        settings = {"case": asdict(case), "setting": asdict(self.setting), "n": n}

        def compute() -> dict[str, Any]:
            certificate, _ = runs.certify(
                Smoother(self.trained(case), Gaussian(case.sigma), 10),
                list(zip(self.test_x, self.test_y.tolist(), strict=True)),
                out=self.file("votes", settings),
                n=n,
                alpha=ALPHA,
                seed=case.seed,
            )
            right = certificate.label == self.test_y
            return {"reach": torch.where(right, certificate.radius, -1.0).tolist()}

        return once(self.out / "numbers", settings, compute)


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for."""
    began = time.perf_counter()
    parser = options(__doc__, "mnist")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--sigmas", nargs="*", type=float, default=SIGMAS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--votes", type=int, help="votes an image, in place of the scale's")
    parser.add_argument("--train-only", action="store_true", help="certify nothing")
    asked = parser.parse_args(arguments)
    setting, n = SCALES[asked.scale]
    experiment = Experiment(setting, asked.data, asked.out / asked.scale)
    cases = [
        Case(method, sigma, seed)
        for seed in range(asked.seeds)
        for method in asked.methods
        for sigma in asked.sigmas
    ]
    for case in tqdm(cases):
        if asked.train_only:
            experiment.trained(case)
        else:
            print(case, experiment.certified(case, asked.votes or n))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
