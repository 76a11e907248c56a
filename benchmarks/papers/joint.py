"""Poisoned clients and perturbed inputs in one certificate, on MNIST with a thousand clients.

``python -m benchmarks.papers.joint --data DIR --scale paper --device cuda`` divides the clients
into groups, trains a model in each, and certifies the vote of noisy copies of the vote of the
groups: certified accuracy over the number of clients that send anything in every round, and over
the l2 radius of a change of the picture. Beside it stands each certificate alone: the vote of the
groups on pictures as they are, and smoothing against nobody.

Two ways to train the groups' models:

- ``features``: a feature extractor is trained with noise on 10,000 public pictures; the clients
  share the other 50,000 and train linear heads on features of noisy copies of theirs.
- ``pixels``: nothing is public; each group trains a small convolutional network on pictures that
  are shifted, turned and scaled at random and then noisy, or at the adversarial points of its own
  smoothed network (Fed-SmoothAdv).

Further cases: clients that hold few classes each, in groups by a hash of their ids or dealt out by
a roster of the class that each holds most of; and CIFAR-10.

A run that was stopped goes on where it was: each round of the groups and each ten pictures' votes
are kept in ``--out``.

FLCert (Cao et al. 2022) certifies .88 of the test pictures against 20 malicious clients of 1000,
on pictures as they are (radius 0).
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.papers import recipe
from benchmarks.papers.recipe import chosen, key, once, options, report, word
from rsfl import attacks, demo, fed, orbit, runs, train
from rsfl._draws import generator
from rsfl._fingerprint import input_hash, weights_hash
from rsfl.noise import Gaussian
from rsfl.smooth import JointBallot, JointCertificate, JointSmoother

SEED, ALPHA, CLASSES, COPIES, FEATURES = 0, 0.001, 10, 4, 128
BATCH = {"features": 200, "pixels": 400}  # noisy copies at a time, on a CPU
PART = 10  # pictures whose votes are kept in one file
SHIFTS = orbit.Translations(0.1, 0.1)  # half images
TURNS = orbit.RotationScalings(math.radians(15), 0.15)
EPSILON = 0.5  # budget of the attack in training, in l2
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
        spread: Who holds what: ``equal``, ``dirichlet`` or ``major`` class.
        share: Concentration of the Dirichlet law, or share of the major class.
        roster: Whether groups are balanced by the class that each client holds most of.
        training: ``noise`` or ``smoothadv``.
        pictures: ``mnist`` or ``cifar10``.
    """

    models: str = "features"
    groups: int = 100
    sigma: float = 0.25
    spread: str = "equal"
    share: float = 0.0
    roster: bool = False
    training: str = "noise"
    pictures: str = "mnist"

    @property
    def name(self) -> str:
        """A name for files and headings: what differs from the first of all cases."""
        parts = [self.models, str(self.groups)]
        parts += [f"{self.spread}-{self.share:g}"] if self.spread != "equal" else []
        parts += ["roster"] * self.roster
        parts += [self.training] if self.training != "noise" else []
        parts += [self.pictures] if self.pictures != "mnist" else []
        return "-".join(parts)


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
        adversarial_rounds: Rounds of Fed-SmoothAdv.
    """

    clients: int = 1000
    public: int = 10_000
    epochs: int = 30
    rounds: int = 20
    pixel_rounds: int = 40
    stride: int = 20
    n: int = 10_000
    pixel_n: int = 10_000
    adversarial_rounds: int = 40


SCALES = {
    "smoke": Scale(
        clients=40,
        public=300,
        epochs=2,
        rounds=2,
        pixel_rounds=1,
        stride=20,
        n=100,
        pixel_n=100,
        adversarial_rounds=1,
    ),
    "small": Scale(n=2_000, pixel_n=500, stride=20, pixel_rounds=20, adversarial_rounds=4),
    "paper": Scale(),
}
UNEQUAL = [("dirichlet", 0.5), ("dirichlet", 0.1), ("major", 0.5)]
FIRST = [Case("features", groups) for groups in (100, 50, 200)]
ON_PIXELS = [Case("pixels", groups) for groups in (100, 50, 200)]
ADVERSARIAL = [Case("pixels", groups, training="smoothadv") for groups in (100, 50, 200)]
HETEROGENEOUS = [
    Case("features", 100, spread=spread, share=share, roster=roster)
    for spread, share in UNEQUAL
    for roster in (False, True)
]
COLOURS = [Case("features", 100, pictures="cifar10")]
CASES = {
    "smoke": [
        Case("features", 10),
        Case("pixels", 10),
        Case("features", 10, spread="dirichlet", share=0.5, roster=True),
        Case("pixels", 5, training="smoothadv"),
    ],
    "small": FIRST + HETEROGENEOUS + ON_PIXELS[:1] + ADVERSARIAL[:1] + COLOURS,
    "paper": FIRST + HETEROGENEOUS + ON_PIXELS + ADVERSARIAL + COLOURS,
}
DIFFERS = {
    "smoke": ["scikit-learn's digits, 40 clients, a handful of steps: a test of the recipe"],
    "small": ["2,000 votes a picture on features, 500 on pixels; 20 rounds on pixels; one seed"],
    "paper": ["one seed"],
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
    """LeNet up to its last layer; for 8 x 8 digits the demo's network, for 32 x 32 colours one of
    four convolutions."""
    if width == 8:
        return nn.Sequential(*demo.network()[:-1], nn.Linear(512, FEATURES), nn.ReLU())
    if width == 32:
        channels, layers = 3, []
        for wide, stride in ((32, 1), (64, 2), (128, 2), (128, 2)):
            layers += [nn.Conv2d(channels, wide, 3, stride, padding=1), nn.ReLU()]
            channels = wide
        head = nn.Linear(128 * 16, FEATURES)
        return nn.Sequential(*layers, nn.Flatten(), head, nn.ReLU())
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
    """What a group of six hundred pictures can train: 14,538 parameters at 28 x 28."""
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
        # Convolutions of a few channels are three times as fast on a CPU in this order.
        self.features = features.eval().to(memory_format=torch.channels_last)
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
    return x + Gaussian(sigma).sample(tuple(x.shape), generator=generator(SEED, *key)).to(x.device)


def data(scale: str, folder: Path, name: str, device: str) -> tuple[Tensor, ...]:
    """Training pictures in a fixed random order, their labels, test pictures, their labels."""
    read = {"mnist": recipe.mnist, "cifar10": recipe.cifar10}[name]
    x, y, test, labels = demo.digits() if scale == "smoke" else read(folder)
    order = torch.randperm(len(x), generator=generator(SEED, "order"))
    return tuple(part.to(device) for part in (x[order].float(), y[order], test.float(), labels))


def trained_features(case: Case, scale: Scale, x: Tensor, y: Tensor, out: Path) -> Seen:
    """The extractor, trained on public pictures; a training that was interrupted goes on."""
    public, labels, sigma = x[: scale.public], y[: scale.public], case.sigma
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        features = extractor(x.shape[-1]).to(x.device)
        model = nn.Sequential(features, nn.Linear(FEATURES, CLASSES).to(x.device))
    named = "features" if case.pictures == "mnist" else f"features-{case.pictures}"
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train.fit(
        model,
        Shifted(train.Batches(public, labels, 128)),
        train.Consistency(law=Gaussian(sigma), weight=5.0),
        optimizer,
        epochs=scale.epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, scale.epochs),
        checkpoint=out / f"{named}-{sigma}.ckpt",
    )
    return Seen(features, public, sigma).to(x.device)


def divided(case: Case, clients: int, y: Tensor) -> tuple[list[np.ndarray], dict[int, int] | None]:
    """Which samples each client has, and the roster of the class that each has most of."""
    labels = y.cpu().numpy()
    if case.spread == "dirichlet":
        parts = fed.partition.dirichlet(labels, clients, case.share, min_samples=2, seed=SEED)
    elif case.spread == "major":
        each = len(labels) // clients
        parts = fed.partition.major_class(labels, clients, each, case.share, seed=SEED)
    else:
        parts = fed.partition.equal(len(labels), clients, seed=SEED)
    most = {k: int(np.bincount(labels[part]).argmax()) for k, part in enumerate(parts)}
    return parts, most if case.roster else None


def trainer(case: Case) -> fed.SGD:
    """What every client does in a round."""
    if case.models == "features":
        return fed.SGD(lr=0.02, batch_size=None, epochs=10, decay=1e-3)
    law = train.OrbitNoise(SHIFTS, train.OrbitNoise(TURNS, Gaussian(case.sigma)))
    loss: Any = train.CrossEntropy(law)
    if case.training == "smoothadv":
        attack = attacks.SmoothAdvPGD(epsilon=EPSILON, steps=1, samples=2)
        loss = train.Adversarial(attack=attack, law=law, num_classes=CLASSES)
    return fed.SGD(lr=0.1, batch_size=20, epochs=5, momentum=0.9, loss=loss)


def groups_of_heads(
    case: Case, scale: Scale, x: Tensor, y: Tensor, seen: Seen, kept: Path
) -> fed.GroupVote:
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
    spread, roster = divided(case, scale.clients, labels)
    parts = [(part[:, None] * COPIES + np.arange(COPIES)).ravel() for part in spread]
    members = fed.clients(rows, labels.repeat_interleave(COPIES), parts, trainer(case))
    head = nn.Linear(FEATURES, CLASSES).to(x.device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    server = fed.Server(head, members, seed=SEED)
    return _trained(server, case, scale.rounds, roster, kept)


def groups_of_networks(case: Case, scale: Scale, x: Tensor, y: Tensor, kept: Path) -> fed.GroupVote:
    """Networks that the groups train on moved and noisy pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = small_network(x.shape[-1]).to(x.device)
    parts, roster = divided(case, scale.clients, y)
    server = fed.Server(network, fed.clients(x, y, parts, trainer(case)), seed=SEED)
    noisy = case.training == "noise"
    rounds = scale.pixel_rounds if noisy else scale.adversarial_rounds
    return _trained(server, case, rounds, roster, kept)


def _trained(
    server: fed.Server, case: Case, rounds: int, roster: dict[int, int] | None, kept: Path
) -> fed.GroupVote:
    """The groups of a case; a training that was stopped goes on."""
    return fed.train_groups(
        server,
        case.groups,
        rounds,
        num_classes=CLASSES,
        roster=roster,
        checkpoint=kept,
        progress=True,
    )


def cast(
    smoother: JointSmoother, x: Tensor, n: int, batch_size: int | None, kept: Path
) -> Iterator[JointBallot]:
    """The votes on some pictures at a time. Those that are in a file are not cast again, if these
    models cast them, about these pictures."""
    how = {"models": weights_hash(smoother.judge), "law": str(smoother.law), "n": n}
    kept.mkdir(parents=True, exist_ok=True)
    for chunk in torch.arange(len(x)).split(PART):
        about = key({**how, "pictures": input_hash(x[chunk])})
        path = kept / f"{int(chunk[0]):05d}-{about}.json"
        if not path.exists():
            some = smoother.ballot(x[chunk], n=n, index=chunk, seed=SEED + 1, batch_size=batch_size)
            some.certificate(ALPHA, rungs=[0]).save(path)
        yield JointCertificate.load(path).ballot


def measured(case: Case, scale: Scale, pictures: tuple[Tensor, ...], out: Path) -> dict[str, Any]:
    """Certified accuracy over clients and radius, together and each alone."""
    x, y, test, labels = pictures
    began, groups = time.perf_counter(), out / "groups" / case.name
    whole = not groups.exists() and not (out / "votes" / case.name).exists()
    seen = None
    if case.models == "features":
        seen = trained_features(case, scale, x, y, out / "training")
        vote = groups_of_heads(case, scale, x, y, seen, groups)
    else:
        vote = groups_of_networks(case, scale, x, y, groups)
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
    batch = BATCH[case.models] if x.device.type == "cpu" else None
    for some in cast(smoother, asked, n, batch, out / "votes" / case.name):
        parts.append(some)
        done, took = sum(map(len, parts)), time.perf_counter() - began
        print(f"{case.name}: {done} of {len(asked)}, {took:.0f} s", flush=True)
    ballot = JointBallot.cat(parts)
    (out / "certificates").mkdir(parents=True, exist_ok=True)
    certificate = ballot.certificate(ALPHA, rungs=rungs)
    certificate.save(out / "certificates" / f"{case.name}.json")
    truth = truth.cpu()
    union = ballot.certificate(ALPHA, rungs=rungs, together=True)
    return {
        "rungs": rungs,
        "radii": list(RADII),
        "joint": runs.joint_accuracy(certificate, truth, RADII).tolist(),
        "joint, all rungs at once": runs.joint_accuracy(union, truth, RADII).tolist(),
        "groups alone": alone,
        "smallest group": min(map(len, vote.groups)),
        "groups without a model": len(vote.failed),
        "votes": n,
        "images": len(asked),
        # Of a case that was stopped and went on, nobody has measured how long it took.
        "seconds of training": training if whole else None,
        "seconds of votes": time.perf_counter() - began if whole else None,
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
        name = f"{case.name} groups" if case.name.count("-") == 1 else case.name
        rungs, joint = numbers["rungs"], np.array(numbers["joint"])
        for clients, published in PUBLISHED.items():
            if clients in rungs and case.pictures == "mnist":
                share = numbers["groups alone"][rungs.index(clients)]
                said[f"{name}: at least {published} against {clients} clients at radius 0"] = (
                    f"{word(share >= published)} ({share:.3f})"
                )
        price = joint[0] - joint[-1]
        said[f"{name}: what {rungs[-1]} clients cost at radius .25"] = f"{price[2]:.3f}"
    return said


def drawn(found: Mapping[Case, Mapping[str, Any]], out: Path, truths: Mapping[str, Tensor]) -> None:
    """One heat map a case."""
    import matplotlib

    matplotlib.use("Agg")

    for case in found:
        certificate = JointCertificate.load(out / "certificates" / f"{case.name}.json")
        pictures = {"mnist": "MNIST", "cifar10": "CIFAR-10"}[case.pictures]
        title = f"{pictures}, 1000 clients in {case.groups} groups, {case.models}"
        axes = runs.plot_joint(certificate, truths[case.pictures], title=title)
        axes.figure.savefig(out / f"{case.name}.png", dpi=120)


def main(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Run the recipe; the verdicts."""
    parser = options(__doc__, "joint")
    parser.add_argument("--case", action="append", help="only the cases of these names")
    args = parser.parse_args(arguments)
    began, scale, out = time.perf_counter(), SCALES[args.scale], args.out / args.scale
    there = {case.name: case for case in CASES[args.scale]}
    cases = [there[name] for name in chosen(parser, args.case, there)]
    pictures = {
        name: data(args.scale, args.data, name, args.device)
        for name in dict.fromkeys(case.pictures for case in cases)
    }
    found: dict[Case, Mapping[str, Any]] = {}
    for case in cases:
        compute: Callable[[], dict[str, Any]] = lambda case=case: measured(  # noqa: E731
            case, scale, pictures[case.pictures], out
        )
        settings = {
            "case": asdict(case),
            "scale": asdict(scale),
            "trainer": str(trainer(case)),
            "device": args.device,
        }
        found[case] = once(out / "cases", settings, compute)
        print(f"\n{case.name}\n{table(found[case])}\n", flush=True)
    drawn(found, out, {name: parts[3][:: scale.stride].cpu() for name, parts in pictures.items()})
    words = verdicts(found)
    report(out, args.scale, DIFFERS[args.scale], words, time.perf_counter() - began)
    named = {case.name: dict(numbers) for case, numbers in found.items()}
    (out / "tables.json").write_text(json.dumps(named, indent=1))
    return words


if __name__ == "__main__":
    main()
