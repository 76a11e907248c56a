"""SmoothAdv (Salman et al. 2019) on CIFAR-10: does adversarial training of the smoothed classifier
certify more?

``python -m benchmarks.papers.salman2019 --data DIR --scale small`` trains networks with noise and
with SmoothAdv, certifies test images, attacks them, and compares, by figure:

- envelopes: Table 2 and Figure 1, the best of several models at each radius, and Table 3, the same
  votes read in linf;
- training: one model a way of training, among them adversarial training of the network itself
  (Appendix C.1);
- samples, epsilon: the draws m and the budget in training (Appendices C.2 and C.3);
- attack: Figure 3, accuracy under attacks of m draws beside what is certified; the votes n of the
  prediction (C.5) and the gradient-free attack (C.6);
- data: pre-training and self-training (section 4.2), on a substitute: held-back parts of CIFAR-10's
  own training set stand for ImageNet and for the unlabelled tiny images;
- digits: the figure ``training`` on scikit-learn's digits with more seeds, at the settings of Chen
  et al. 2021 (sigma = 0.25, epsilon = 128/255, two draws, two steps), and the claims of that paper
  on the one-point estimator.

Taken from the paper where its code differs: a batch is B images with m draws each (Pseudocode 1;
the code takes B / m images), and epsilon is 0.25, 0.5 ... (the code's 64, 127 ... are divided by
256 in training and by 255 in its plots). Taken from the code: steps of 2 epsilon / T, no random
start, epsilon grows over the first epochs, DDN starts at epsilon, pre-training is followed by a new
last layer, pseudo-labels weigh as much as labels and, at scale ``paper``, images are mirrored and
shifted. Of the paper's T in {2, 4, 6, 8, 10} the rows with T = 2 are taken, with DDN at one
epsilon. All ways of training take as many steps, whatever the number of images, but for
fine-tuning, which comes on top of its pre-training.

Weights, votes and numbers are kept in ``--out``: what is there is not computed again. Two models
are compared on the same test images; a difference is called a finding where chance, over the images
and, where there are several, over the seeds of training, explains it with a probability below 5 %
(jointly for all radii of a claim, by the normal law).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from tqdm.auto import tqdm
from typing_extensions import override

from benchmarks.networks import resnet, small_cnn
from benchmarks.papers.recipe import Moved, chosen, cifar10, key, once, options, report
from benchmarks.papers.salman2019_findings import draw, judged, name, table
from benchmarks.papers.salman2019_plan import (
    ALPHA,
    ALWAYS_DIFFERS,
    DIFFERS,
    SCALES,
    Attacked,
    Case,
    Setting,
    figures,
)
from rsfl import attacks, demo, runs, train
from rsfl.attacks import PGD, Attack, OnePoint, SmoothAdvDDN, SmoothAdvPGD
from rsfl.noise import Gaussian
from rsfl.smooth import Smoother, evaluating
from rsfl.train import Adversarial, Batches, CrossEntropy, Loss, Source, fit

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "digits": demo.network,
    "small": lambda: small_cnn(channels=3, size=32),
    "resnet20": lambda: resnet(20).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "resnet110": lambda: resnet(110).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
}
ATTACKS: Mapping[str, Callable[[Case], Attack]] = {
    "vanilla": lambda case: PGD(epsilon=case.epsilon, steps=case.steps),
    "vanilla + noise": lambda case: PGD(epsilon=case.epsilon, steps=case.steps),
    "SmoothAdv-PGD": lambda case: SmoothAdvPGD(
        epsilon=case.epsilon, steps=case.steps, samples=case.samples
    ),
    "SmoothAdv-DDN": lambda case: SmoothAdvDDN(
        epsilon=case.epsilon, steps=case.steps, samples=case.samples
    ),
    "one-point": lambda case: OnePoint(
        epsilon=case.epsilon, steps=case.steps, samples=case.samples
    ),
}


@dataclass(frozen=True, kw_only=True)
class ThenNoise(Adversarial):
    """Cross-entropy under noise that the attack did not look at."""

    @override
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        with evaluating(model):
            point = self.attack(
                Smoother(model, self.law, self.num_classes), x, y, generator=generator
            ).point
        return CrossEntropy(self.law)(model, point, y, generator)


def loss(case: Case) -> Loss:
    """What the training of a case descends."""
    law = Gaussian(case.sigma)
    if case.way not in ATTACKS:
        return CrossEntropy(law if case.way == "noise" else None)
    kind = ThenNoise if case.way == "vanilla + noise" else Adversarial
    return kind(attack=ATTACKS[case.way](case), law=law, num_classes=10)


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
        return self.out / folder / key(self.settings(item))

    def examples(self, case: Case) -> tuple[Tensor, Tensor]:
        """What a case trains on, fine-tuning included."""
        setting, few = self.setting, self.setting.few
        first, second = (
            slice(few, few + setting.more),
            slice(few + setting.more, few + 2 * setting.more),
        )
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
            last = [name for name, _ in model.named_parameters()][
                -2:
            ]  # weight and bias of the last layer stay new
            model.load_state_dict(
                {k: v for k, v in before.state_dict().items() if k not in last}, strict=False
            )
            epochs, warmup, lr = setting.tuning * longer, 0, setting.tuning_lr
        model, epochs = model.to(self.device), max(1, round(epochs))
        source: Source = batches
        optimizer: torch.optim.Optimizer
        scheduler: lr_scheduler.LRScheduler | None = None
        if setting.network.startswith("resnet"):
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


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    began = time.perf_counter()
    parser = options(__doc__, "salman2019", SCALES)
    parser.add_argument(
        "--figures", nargs="*", metavar="FIGURE", help="only these, e.g. envelopes attack"
    )
    parser.add_argument(
        "--ways",
        nargs="*",
        metavar="WAY",
        help="train and certify these ways of training alone, such as noise, and judge nothing",
    )
    asked = parser.parse_args(arguments)
    scale, out = SCALES[asked.scale], asked.out / asked.scale
    plan = figures(scale)
    wanted = chosen(parser, asked.figures, plan)
    experiment_of = cache(
        partial(Experiment, data=asked.data, device=asked.device, out=out)
    )  # reads data once
    verdicts: dict[str, str] = {}
    lines: list[str] = []
    with tqdm(total=sum(len(plan[figure]) for figure in wanted)) as bar:
        for figure in wanted:
            setting = scale.digits if figure == "digits" else scale.setting
            experiment = experiment_of(setting)
            found: dict[Case | Attacked, Mapping[str, Any]] = {}
            for item in plan[figure]:
                if asked.ways and (isinstance(item, Attacked) or item.way not in asked.ways):
                    continue
                bar.set_description(f"{figure}: {name(item)}")
                found[item] = experiment.numbers(item)
                bar.update()
            if asked.ways:
                continue
            draw(figure, scale, found, out / f"{figure}.png")
            verdicts |= judged(figure, scale, found)
            lines += table(figure, scale, found)
    if asked.ways:
        return verdicts
    (out / "tables.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines) + "\n")
    report(
        out,
        asked.scale,
        (*ALWAYS_DIFFERS, *DIFFERS[asked.scale]),
        verdicts,
        time.perf_counter() - began,
    )
    return verdicts


if __name__ == "__main__":
    main()
