"""Poisoned clients and perturbed inputs in one certificate, on MNIST with a thousand clients.

``python -m benchmarks.papers.joint --data DIR --scale paper`` divides the clients into groups,
trains a model in each, and certifies the vote of noisy copies of the vote of the groups: certified
accuracy over the number of clients that send anything in every round, and over the l2 radius of a
change of the picture. Beside it stands each certificate alone: the vote of the groups on pictures
as they are, and smoothing against nobody.

Two ways to train the groups' models:

- ``features``: a feature extractor is trained with noise on 10,000 public pictures; the clients
  share the other 50,000 and train linear heads on features of noisy copies of theirs.
- ``pixels``: nothing is public; each group trains a small convolutional network on noisy pictures.

FLCert (Cao et al. 2022) certifies .88 of the test pictures against 20 malicious clients of 1000,
on pictures as they are (radius 0).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.papers import recipe
from benchmarks.papers.recipe import once, options, report, word
from rsfl import demo, fed, runs, train
from rsfl._draws import generator
from rsfl.noise import Gaussian
from rsfl.smooth import JointBallot, JointSmoother

SEED, ALPHA, CLASSES, COPIES, FEATURES = 0, 0.001, 10, 8, 128
RADII = (0.0, 0.1, 0.25, 0.5, 0.75)
RUNGS = (0, 1, 2, 5, 10, 20, 30, 40, 50)
PUBLISHED = {20: 0.88}  # FLCert, 1000 clients, radius 0


@dataclass(frozen=True)
class Case:
    """One way to train, and into how many groups.

    Args:
        models: ``features`` or ``pixels``.
        groups: Number of groups.
        sigma: Noise of training and of certification.
    """

    models: str = "features"
    groups: int = 100
    sigma: float = 0.25


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Args:
        clients: Number of clients.
        public: Pictures that are public, for the extractor.
        epochs: Passes over them.
        rounds: Rounds of federated training of the heads.
        pixel_rounds: The same of networks on pixels.
        stride: Every so many test pictures are certified.
        n: Votes a picture.
        pixel_n: The same for networks on pixels.
    """

    clients: int = 1000
    public: int = 10_000
    epochs: int = 30
    rounds: int = 20
    pixel_rounds: int = 40
    stride: int = 20
    n: int = 10_000
    pixel_n: int = 2_000


SCALES = {
    "smoke": Scale(
        clients=40, public=300, epochs=2, rounds=2, pixel_rounds=1, stride=20, n=100, pixel_n=100
    ),
    "small": Scale(n=2_000, pixel_n=500, stride=20),
    "paper": Scale(),
}
CASES = {
    "smoke": [Case("features", 10), Case("pixels", 10)],
    "small": [Case("features", groups) for groups in (100, 50, 200)] + [Case("pixels", 100)],
    "paper": [
        Case(models, groups) for models in ("features", "pixels") for groups in (50, 100, 200)
    ],
}
DIFFERS = {
    "smoke": ["scikit-learn's digits, 40 clients, a handful of steps: a test of the recipe"],
    "small": ["2,000 votes a picture on features, 500 on pixels; one seed"],
    "paper": ["2,000 votes a picture on pixels; one seed"],
}


class Shifted:
    """Batches of pictures, each batch moved by up to two pixels in either direction."""

    def __init__(self, batches: train.Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = generator(SEED, "shift", epoch)
        for x, y in self.batches(epoch):
            down, right = torch.randint(-2, 3, (2,), generator=draws).tolist()
            yield torch.roll(x, (down, right), (2, 3)), y


def extractor(width: int) -> nn.Sequential:
    """LeNet up to its last layer; for 8 x 8 digits the demo's network."""
    if width == 8:
        return nn.Sequential(*demo.network()[:-1], nn.Linear(512, FEATURES), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, FEATURES),
        nn.ReLU(),
    )


def small_network(width: int) -> nn.Sequential:
    """What a group of six hundred pictures can train: 11,000 parameters."""
    side = (width - 4) // 2 if width == 28 else width // 2
    first = nn.Conv2d(1, 8, 5, stride=2) if width == 28 else nn.Conv2d(1, 8, 3, 2, padding=1)
    side = (side - 3) // 2 + 1
    return nn.Sequential(
        first,
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * side * side, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )


class Seen(nn.Module):
    """What the heads are given of a picture: the extractor's features, centred and of unit spread
    on public pictures."""

    def __init__(self, features: nn.Module, public: Tensor, sigma: float) -> None:
        super().__init__()
        self.features = features.eval()
        noisy = _noisy(public[:2000], sigma, "public")
        with torch.no_grad():
            found = self.features(noisy)
        self.register_buffer("centre", found.mean(dim=0))
        self.register_buffer("spread", (found - self.centre).square().mean().sqrt())

    centre: Tensor
    spread: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.features(x) - self.centre) / self.spread
        return out


def _noisy(x: Tensor, sigma: float, *key: int | str) -> Tensor:
    return x + Gaussian(sigma).sample(tuple(x.shape), generator=generator(SEED, *key))


def data(scale: str, folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pictures in a fixed random order, their labels, test pictures, their labels."""
    x, y, test, labels = demo.digits() if scale == "smoke" else recipe.mnist(folder)
    order = torch.randperm(len(x), generator=generator(SEED, "order"))
    return x[order].float(), y[order], test.float(), labels


def trained_features(scale: Scale, x: Tensor, y: Tensor, sigma: float, out: Path) -> Seen:
    """The extractor, trained on public pictures; a training that was interrupted goes on."""
    public, labels = x[: scale.public], y[: scale.public]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        features = extractor(x.shape[-1])
        model = nn.Sequential(features, nn.Linear(FEATURES, CLASSES))
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train.fit(
        model,
        Shifted(train.Batches(public, labels, 128)),
        train.Consistency(law=Gaussian(sigma), weight=5.0),
        optimizer,
        epochs=scale.epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, scale.epochs),
        checkpoint=out / f"features-{sigma}.ckpt",
    )
    return Seen(features, public, sigma)


def groups_of_heads(case: Case, scale: Scale, x: Tensor, y: Tensor, seen: Seen) -> fed.GroupVote:
    """Heads that the groups train on features of noisy copies of their own pictures."""
    own, labels = x[scale.public :], y[scale.public :]
    with torch.no_grad():
        copies = [
            torch.cat(
                [
                    seen(_noisy(part, case.sigma, "client", copy, number))
                    for number, part in enumerate(own.split(1000))
                ]
            )
            for copy in range(COPIES)
        ]
    rows = torch.stack(copies, dim=1).flatten(0, 1)  # the copies of a picture side by side
    parts = [
        (part[:, None] * COPIES + np.arange(COPIES)).ravel()
        for part in fed.partition.equal(len(own), scale.clients, seed=SEED)
    ]
    trainer = fed.SGD(lr=0.02, batch_size=None, epochs=10, decay=1e-3)
    members = fed.clients(rows, labels.repeat_interleave(COPIES), parts, trainer)
    head = nn.Linear(FEATURES, CLASSES)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    server = fed.Server(head, members, seed=SEED)
    return fed.train_groups(server, case.groups, scale.rounds, num_classes=CLASSES)


def groups_of_networks(case: Case, scale: Scale, x: Tensor, y: Tensor) -> fed.GroupVote:
    """Networks that the groups train on noisy pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = small_network(x.shape[-1])
    trainer = fed.SGD(
        lr=0.1, batch_size=20, epochs=2, momentum=0.9, loss=train.CrossEntropy(Gaussian(case.sigma))
    )
    parts = fed.partition.equal(len(x), scale.clients, seed=SEED)
    server = fed.Server(network, fed.clients(x, y, parts, trainer), seed=SEED)
    return fed.train_groups(server, case.groups, scale.pixel_rounds, num_classes=CLASSES)


def measured(case: Case, scale: Scale, pictures: tuple[Tensor, ...], out: Path) -> dict[str, Any]:
    """Certified accuracy over clients and radius, together and each alone."""
    x, y, test, labels = pictures
    began = time.perf_counter()
    seen = None
    if case.models == "features":
        seen = trained_features(scale, x, y, case.sigma, out / "training")
        vote = groups_of_heads(case, scale, x, y, seen)
    else:
        vote = groups_of_networks(case, scale, x, y)
    training = time.perf_counter() - began

    judge = fed.GroupJudge(vote, features=seen)
    asked, truth = test[:: scale.stride], labels[:: scale.stride]
    rungs = [rung for rung in RUNGS if rung < len(judge.ladder)]
    with torch.no_grad():
        elected, withstood = judge.judged(asked)
    alone = [float(((elected == truth) & (withstood >= rung)).double().mean()) for rung in rungs]

    smoother = JointSmoother(judge, Gaussian(case.sigma))
    n = scale.n if case.models == "features" else scale.pixel_n
    began, parts = time.perf_counter(), []
    for chunk in torch.arange(len(asked)).split(20):
        parts.append(smoother.ballot(asked[chunk], n=n, index=chunk, seed=SEED + 1))
        done = sum(map(len, parts))
        print(f"{case}: {done} of {len(asked)}, {time.perf_counter() - began:.0f} s", flush=True)
    ballot = JointBallot.cat(parts)
    (out / "certificates").mkdir(parents=True, exist_ok=True)
    certificate = ballot.certificate(ALPHA, rungs=rungs)
    certificate.save(out / "certificates" / f"{case.models}-{case.groups}.json")
    union = ballot.certificate(ALPHA, rungs=rungs, together=True)
    return {
        "rungs": rungs,
        "radii": list(RADII),
        "joint": runs.joint_accuracy(certificate, truth, RADII).tolist(),
        "joint, all rungs at once": runs.joint_accuracy(union, truth, RADII).tolist(),
        "groups alone": alone,
        "votes": n,
        "images": len(asked),
        "seconds of training": training,
        "seconds of votes": time.perf_counter() - began,
    }


def table(numbers: Mapping[str, Any]) -> str:
    """Certified accuracy: a row a number of clients, a column a radius."""
    heading = "| clients | groups alone | " + " | ".join(f"r = {r:g}" for r in numbers["radii"])
    rows = [f"{heading} |", "|---" * (len(numbers["radii"]) + 2) + "|"]
    for rung, alone, shares in zip(
        numbers["rungs"], numbers["groups alone"], numbers["joint"], strict=True
    ):
        cells = [f"{np.floor(share * 1000) / 1000:.3f}" for share in (alone, *shares)]
        rows.append(f"| {rung} | {' | '.join(cells)} |")
    return "\n".join(rows)


def verdicts(found: Mapping[Case, Mapping[str, Any]]) -> dict[str, str]:
    """What came of the published figure, and of the price of doing both at once."""
    said = {}
    for case, numbers in found.items():
        name = f"{case.models}, {case.groups} groups"
        rungs, joint = numbers["rungs"], np.array(numbers["joint"])
        for clients, published in PUBLISHED.items():
            if clients in rungs:
                share = numbers["groups alone"][rungs.index(clients)]
                said[f"{name}: at least {published} against {clients} clients at radius 0"] = (
                    f"{word(share >= published)} ({share:.3f})"
                )
        price = joint[0] - joint[-1]
        said[f"{name}: what {rungs[-1]} clients cost at radius .25"] = f"{price[2]:.3f}"
    return said


def drawn(found: Mapping[Case, Mapping[str, Any]], out: Path, truths: Tensor) -> None:
    """One heat map a case."""
    import matplotlib

    matplotlib.use("Agg")
    from rsfl.smooth import JointCertificate

    for case in found:
        name = f"{case.models}-{case.groups}"
        certificate = JointCertificate.load(out / "certificates" / f"{name}.json")
        title = f"MNIST, 1000 clients in {case.groups} groups, {case.models}"
        axes = runs.plot_joint(certificate, truths, title=title)
        axes.figure.savefig(out / f"{name}.png", dpi=120)


def main(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Run the recipe; the verdicts."""
    parser = options(__doc__, "joint")
    parser.add_argument("--case", type=int, help="only the case of this number, from 0")
    args = parser.parse_args(arguments)
    began, scale, out = time.perf_counter(), SCALES[args.scale], args.out / args.scale
    pictures = data(args.scale, args.data)
    cases = CASES[args.scale] if args.case is None else [CASES[args.scale][args.case]]
    found: dict[Case, Mapping[str, Any]] = {}
    for case in cases:
        compute: Callable[[], dict[str, Any]] = lambda case=case: measured(  # noqa: E731
            case, scale, pictures, out
        )
        settings = {"case": asdict(case), "scale": asdict(scale), "device": args.device}
        found[case] = once(out / "cases", settings, compute)
        print(f"\n{case}\n{table(found[case])}\n", flush=True)
    drawn(found, out, pictures[3][:: scale.stride])
    words = verdicts(found)
    report(out, args.scale, DIFFERS[args.scale], words, time.perf_counter() - began)
    (out / "tables.json").write_text(json.dumps([dict(one) for one in found.values()], indent=1))
    return words


if __name__ == "__main__":
    main()
