"""Which settings make a certificate about clients speak: a linear head on features of MNIST, by 20,
100 and 1000 clients.

``python -m benchmarks.papers.settings --data DIR --scale paper`` changes one setting at a time and
asks every question about clients that there is. The base: features of a network that was trained
with noise on 10,000 public images, of unit norm; the other 50,000 images are spread evenly; heads
begin at zero and take one full step a round for 20 rounds, at the largest rate that does not
expand; everybody, no decay, no noise.

- removal: the run without any 1, 2, 5, 10 of the clients;
- samples: any one client replaces one in a hundred of its samples by anything, in every round;
- moved: any one client moves all its features by .1, in every round;
- one round, every round: any one client sends anything, in the last round or in each, under a clip
  that a pilot on the public images proposed;
- groups: whatever any 1, 10 clients send in every round, by the vote of a model a client (100
  groups at most);
- joint: the same on pictures that are moved by less than .25 as well, by votes.

Settings of the guide are then held against the truth: clients are left out and the rest trains
again, from the beginning, on a server that never heard of them. What has been computed is in
``--out`` and is not computed again.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.papers import recipe
from benchmarks.papers.one_model import dense, head, network
from benchmarks.papers.recipe import once, options, report, word
from rsfl import bounds, demo, fed, smooth
from rsfl._draws import generator, rng
from rsfl.noise import Gaussian

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED, SIGMA, GROUPS, RADIUS = 0, 0.25, 100, 0.25
REMOVED = (1, 2, 5, 10)
VOTED = (1, 10)
LEAST = {1: 0.965, 5: 0.95, 10: 0.93}  # what the guide promises of 100 clients
LONGEST = 2**0.5 * (1 + 1e-9)  # of (x, 1), where x has unit norm


@dataclass(frozen=True)
class Case:
    """A run's settings; by default the base, with 100 clients.

    Args:
        clients: How many.
        features: ``noisy``: of a network trained on public images with noise; ``clean``: without;
            ``letters``: of one trained on letters, which never saw a digit; ``random``: of one that
            was not trained; ``pixels``: the image itself. All centred and of unit norm.
        start: ``zero``, or the head that ``public`` features give alone.
        spread: Who holds what: ``equal`` shares, ``dirichlet`` with a concentration of .3, or a
            ``major`` class that makes half of a client's images.
        rounds: How many.
        step: Of the largest step that does not expand, how much.
        batch: Images a local step; None for all that a client has.
        epochs: Passes over a client's images in a round.
        decay: L2 decay.
        fraction: Share of the clients that works in a round.
        slack: How much longer than the pilot's an honest update may be, before the clip cuts it.
    """

    clients: int = 100
    features: str = "noisy"
    start: str = "zero"
    spread: str = "equal"
    rounds: int = 20
    step: float = 0.995
    batch: int | None = None
    epochs: int = 1
    decay: float = 0.0
    fraction: float = 1.0
    slack: float = 1.05

    def __str__(self) -> str:
        """The settings that are not as they are by default."""
        given = [
            f"{one.name} {getattr(self, one.name)}"
            for one in fields(self)
            if one.name != "clients" and getattr(self, one.name) != one.default
        ]
        return ", ".join(given) or "base"


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Args:
        data: ``mnist`` or ``digits``.
        public: Images that are public.
        steps: Steps of training on them.
        head: Rounds of the head that they give alone.
        settings: What is tried, one at a time, by number of clients.
        removals: How often any so many clients are left out.
        images: Images of the joint certificates.
        votes: Votes for each.
    """

    data: str
    public: int
    steps: int
    head: int
    settings: Mapping[int, Mapping[str, Sequence[Any]]]
    removals: Mapping[int, int]
    images: int
    votes: int


SETTINGS: Mapping[str, Sequence[Any]] = {
    "rounds": (3, 5, 10, 40),
    "decay": (0.001, 0.01, 0.1),
    "step": (0.5, 0.1),
    "batch": (100, 20),
    "epochs": (5,),
    "fraction": (0.5, 0.1),
    "start": ("public",),
    "spread": ("dirichlet", "major"),
    "slack": (2.0,),
    "features": ("clean", "random", "pixels", "letters"),
}
FEWER: Mapping[str, Sequence[Any]] = {
    "rounds": (5, 40),
    "decay": (0.01,),
    "start": ("public",),
    "spread": ("dirichlet", "major"),
}
SCALES = {
    "smoke": Scale(
        *("digits", 300, 60, 20),
        {
            20: {"rounds": (5,), "features": ("pixels",)},
            10: {"start": ("public",), "spread": ("dirichlet",)},
        },
        {1: 2, 5: 2},
        *(5, 50),
    ),
    "small": Scale(
        *("mnist", 10_000, 1500, 100),
        {100: {"rounds": (5,), "start": ("public",)}},
        {1: 4, 5: 3, 10: 3},
        *(50, 200),
    ),
    "paper": Scale(
        *("mnist", 10_000, 1500, 100),
        {100: SETTINGS, 20: FEWER, 1000: FEWER},
        {1: 20, 5: 15, 10: 15},
        *(200, 500),
    ),
}
RECOMMENDED = {
    "from zero": Case(rounds=5, epochs=5),
    "from a public head": Case(rounds=5, start="public"),
}
DIFFERS = ("no paper has this experiment",)


def noisy(x: Tensor, *key: int | str) -> Tensor:
    """The images with noise, the same for the same key."""
    return x + Gaussian(SIGMA).sample(tuple(x.shape), generator=generator(SEED, *key)).to(x)


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int, *, noise: bool) -> None:
    """Adam, one cycle of the learning rate, batches of 100 images that are moved by two pixels at
    most, with noise."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    draws = generator(SEED, "extractor")
    for index in range(steps):
        batch = torch.randint(len(x), (100,), generator=draws)
        down, right = torch.randint(-2, 3, (2,), generator=draws).tolist()
        images = torch.roll(x[batch], (down, right), (2, 3))
        images = noisy(images, "batch", index) if noise else images
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()


class Experiment:
    """The data of a scale, its features, and what is measured on them."""

    def __init__(self, scale: Scale, folder: Path, out: Path) -> None:
        self.scale, self.folder, self.out = scale, folder, out
        x, y, test, labels = demo.digits() if scale.data == "digits" else recipe.mnist(folder)
        self.x, self.y, self.test, self.labels = x.float(), y, test.float(), labels
        self._seen: tuple[str, nn.Module, Tensor, Tensor] | None = None

    def extractor(self, kind: str) -> nn.Module:
        """What makes features of images; a network that was trained is kept."""
        side, public = self.x.shape[-1], self.scale.public
        if kind == "pixels":
            flat = nn.Sequential(nn.Flatten(), nn.Identity())
            return demo.frozen_features(flat, self.x[:public])
        x, y = letters(self.folder) if kind == "letters" else (self.x[:public], self.y[:public])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = network(side) if side >= 28 else dense(side)
            model[-1] = nn.Linear(128, int(y.max()) + 1)
        path = self.out / f"{kind}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        elif kind != "random":
            trained(model, x, y, self.scale.steps, noise=kind != "clean")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        return demo.frozen_features(model, x[:public])

    def seen(self, kind: str) -> tuple[nn.Module, Tensor, Tensor]:
        """The extractor, and the features of training and test images; the last kind is kept."""
        if self._seen is None or self._seen[0] != kind:
            extract = self.extractor(kind)
            self._seen = (kind, extract, *(whole(extract, one) for one in (self.x, self.test)))
        return self._seen[1:]

    def server(self, case: Case, inputs: Tensor | None = None) -> fed.Server:
        """A case's run, on the clients' features unless on ``inputs``."""
        public = self.scale.public
        own = self.seen(case.features)[1][public:] if inputs is None else inputs
        labels = self.y[public:]
        trainer = fed.SGD(
            lr=case.step * 2 / (1 + case.decay),
            batch_size=case.batch,
            epochs=case.epochs,
            decay=case.decay,
        )
        members = fed.clients(own, labels, shares(case, labels), trainer)
        begun = self.begun(case)
        return fed.Server(begun, members, fraction=case.fraction, seed=SEED)

    def begun(self, case: Case) -> nn.Module:
        """The head that the clients are given first."""
        public = self.scale.public
        x, y = self.seen(case.features)[1][:public], self.y[:public]
        if case.start == "zero":
            return head(x.shape[1])
        alone = fed.clients(x, y, [np.arange(public)], fed.SGD(lr=1.99, batch_size=None))
        return fed.Server(head(x.shape[1]), alone, seed=SEED).run(self.scale.head).model

    def measured(self, case: Case) -> dict[str, Any]:
        """What every certificate says of a case: shares of the test images that are certified and
        right; None with the condition that fails."""
        began = time.process_time()
        server = self.server(case)
        _, inputs, test = self.seen(case.features)
        public = inputs[: self.scale.public], self.y[: self.scale.public]
        result = server.run(case.rounds)
        found: dict[str, Any] = {
            "before": fed.accuracy(server.model, test, self.labels),
            "accuracy": fed.accuracy(result.model, test, self.labels),
        }
        reach = smooth.margins(result.model, test)
        kept = partial(self._kept, reach, result)
        for many in REMOVED:
            if many < case.clients:
                found[f"removal {many}"] = kept(bounds.RemovalThreat(at_most=many))
        anything = bounds.SampleThreat(at_most=1, share=0.01, input_norm=LONGEST)
        found["samples"] = kept(anything)
        found["moved"] = kept(bounds.FeatureThreat(at_most=1, norm=0.1, flips=False))
        clip = fed.pilot(server, *public, case.rounds, slack=case.slack)
        clipped = replace(server, update_clip=clip).run(case.rounds)
        last = bounds.ClientThreat(at_most=1, rounds=[case.rounds])
        kept = partial(self._kept, smooth.margins(clipped.model, test), clipped)
        found["one round"], found["every round"] = kept(last), kept(bounds.ClientThreat(at_most=1))
        many = min(case.clients, GROUPS)
        vote = fed.train_groups(server, many, case.rounds, num_classes=10)
        elected = vote.certify(test)
        right = elected.label == self.labels
        found["vote"] = float(right.double().mean())
        for lost in VOTED:
            found[f"groups {lost}"] = float((right & (elected.withstands >= lost)).double().mean())
        return {**found, "core seconds": time.process_time() - began}

    def _kept(
        self, reach: smooth.Certificate, result: fed.Result, threat: bounds.Threat
    ) -> float | str:
        """Certified accuracy under a threat, or the condition that the run breaks."""
        try:
            certificate = fed.withstood(reach, result.ledger, threat, result.model)
        except bounds.ConditionError as error:
            return f"refused: {error.condition}"
        return float((certificate.label == self.labels).double().mean())

    def joint(self, case: Case) -> dict[str, Any]:
        """Certified accuracy against clients and moved pictures at once, and against each alone:
        heads on features of noisy copies, one a client."""
        began = time.process_time()
        extract = self.seen(case.features)[0]
        own = whole(extract, noisy(self.x[self.scale.public :], "copy"))
        server = self.server(case, own)
        many = min(case.clients, GROUPS)
        vote = fed.train_groups(server, many, case.rounds, num_classes=10)
        judge = fed.GroupJudge(vote, most=max(VOTED), features=extract)
        x, y = (one[:: max(1, len(self.test) // self.scale.images)] for one in self.tested)
        x, y = x[: self.scale.images], y[: self.scale.images]
        smoother = smooth.JointSmoother(judge, Gaussian(SIGMA))
        certificate = smoother.certify(x, n=self.scale.votes, seed=SEED)
        found = {}
        for lost in (0, *VOTED):
            if lost < many:
                held = (certificate.label(lost) == y) & (certificate.radius(lost) > RADIUS)
                found[f"joint {lost}"] = float(held.double().mean())
        return {**found, "core seconds": time.process_time() - began}

    @property
    def tested(self) -> tuple[Tensor, Tensor]:
        return self.test, self.labels

    def left_out(self, case: Case, many: int) -> dict[str, Any]:
        """The certificate against the loss of any ``many`` clients, held against trainings without
        so many: on a server that never heard of them."""
        began = time.process_time()
        server, test = self.server(case), self.seen(case.features)[2]
        result = server.run(case.rounds)
        threat = bounds.RemovalThreat(at_most=many)
        certificate = fed.certify(result.model, test, result.ledger, threat)
        made = ~certificate.abstained
        differing, moved = 0, 0.0
        for gone in chosen(result, many, self.scale.removals[many]):
            others = [one for one in server.clients if one.id not in gone]
            again = replace(server, clients=others).run(case.rounds).model
            label = again(test).argmax(dim=1)
            differing += int((label != certificate.label)[made].sum())
            moved = max(moved, distance(result.model, again))
        return {
            "certified": float((certificate.label == self.labels).double().mean()),
            "trainings": self.scale.removals[many],
            "differing": differing,
            "of the bound": moved / certificate.deviation,
            "core seconds": time.process_time() - began,
        }


def letters(folder: Path) -> tuple[Tensor, Tensor]:
    """The letters of EMNIST by merge, upright as MNIST is, and which they are."""
    part = "train-subset" if [*(folder / "emnist").glob("*-train-subset-*")] else "train"
    path = folder / "emnist" / f"emnist-bymerge-{part}"
    x = recipe.idx(path.with_name(f"{path.name}-images-idx3-ubyte"))
    y = recipe.idx(path.with_name(f"{path.name}-labels-idx1-ubyte")).long()
    where = torch.randperm(len(x), generator=generator(SEED, "letters"))
    where = where[y[where] >= 10]
    return x[where].transpose(1, 2)[:, None].float() / 255, y[where] - 10


def whole(extract: nn.Module, x: Tensor) -> Tensor:
    """The features of many images."""
    return torch.cat([extract(part) for part in x.split(1000)])


def shares(case: Case, labels: Tensor) -> list[Any]:
    """Who holds which images."""
    if case.spread == "dirichlet":
        least = min(10, len(labels) // case.clients)
        return fed.partition.dirichlet(labels, case.clients, 0.3, min_samples=least, seed=SEED)
    if case.spread == "major":
        size = len(labels) // case.clients
        return fed.partition.major_class(labels, case.clients, size, 0.5, seed=SEED)
    return fed.partition.equal(len(labels), case.clients, seed=SEED)


def chosen(result: fed.Result, many: int, times: int) -> Iterator[frozenset[int]]:
    """Clients to leave out: first those whose updates stood out most, then by chance."""
    stood: dict[int, float] = {}
    for record in result.ledger.rounds:
        for one in record.participants:
            stood[one.client] = stood.get(one.client, 0.0) + one.weight * one.gap
    order = sorted(stood, key=stood.__getitem__, reverse=True)
    yield frozenset(order[:many])
    draws = rng(SEED, "left out", many)
    for index in range(1, times):
        among = order[: max(many + 1, len(order) // 2)] if index % 2 else order
        yield frozenset(draws.choice(among, many, replace=False).tolist())


def distance(one: nn.Module, other: nn.Module) -> float:
    """How far two models are apart."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((p - q).detach().square().sum() for p, q in pairs)) ** 0.5


def cases(scale: Scale) -> list[Case]:
    """The base, then each setting changed alone, for each number of clients; all of one kind of
    features together."""
    found = []
    for clients, settings in scale.settings.items():
        base = Case(clients=clients)
        changed = [{name: value} for name, values in settings.items() for value in values]
        found += [base, *(replace(base, **one) for one in changed)]
        found += [replace(case, clients=clients) for case in RECOMMENDED.values()]
    kinds = list(dict.fromkeys(case.features for case in found))
    return sorted(dict.fromkeys(found), key=lambda case: kinds.index(case.features))


COLUMNS = (
    *("before", "accuracy", *(f"removal {many}" for many in REMOVED), "samples", "moved"),
    *("one round", "every round", "vote", *(f"groups {lost}" for lost in VOTED)),
)


def row(case: Case, found: Mapping[str, Any]) -> str:
    """A row of the table, floored."""
    cells = []
    for column in COLUMNS:
        value = found.get(column)
        floored = (
            value if value is None or isinstance(value, str) else f"{int(value * 1e3) / 1e3:.3f}"
        )
        cells.append("" if floored is None else floored)
    return f"| {case.clients} | {case} | {' | '.join(cells)} |"


def drawn(found: Mapping[Case, Mapping[str, Any]]) -> "Figure":
    """Certified accuracy by rounds, a panel a number of clients."""
    from matplotlib.figure import Figure

    numbers = list(dict.fromkeys(case.clients for case in found))
    numbers.sort()
    picture = Figure(figsize=(9, 3.4), layout="constrained")
    axes = picture.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    lines = {
        "accuracy": "accuracy",
        "removal 1": "without any 1",
        "removal 10": "without any 10",
        "one round": "any 1 lies in one round",
        "every round": "any 1 lies in every round",
        "groups 10": "any 10 lie, vote of groups",
    }
    for clients, axis in zip(numbers, axes, strict=True):
        some = [case for case in found if case == Case(clients=clients, rounds=case.rounds)]
        some.sort(key=lambda case: case.rounds)
        for number, (key, label) in enumerate(lines.items()):
            values = [found[case].get(key) for case in some]
            shown = [np.nan if not isinstance(value, float) else value for value in values]
            axis.plot([case.rounds for case in some], shown, "o-", color=f"C{number}", label=label)
        axis.set(title=f"{clients} clients", xlabel="rounds", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("certified accuracy")
    axes[0].legend(fontsize=7)
    return picture


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Compute what is missing, print the tables, and say what holds."""
    parser = options(__doc__, "settings")
    asked = parser.parse_args(arguments)
    scale, began, out = SCALES[asked.scale], time.perf_counter(), asked.out / asked.scale
    experiment = Experiment(scale, asked.data, out)
    amount = {**asdict(scale), "settings": []}  # what a case does not depend on

    def kept(what: str, case: Case, compute: Callable[..., dict[str, Any]], **more: Any) -> Any:
        settings = {"scale": amount, "case": asdict(case), **more}
        return once(out / what, settings, partial(compute, case, **more))

    said = {}
    most = next(iter(scale.settings))
    for name, recommended in RECOMMENDED.items():
        case = replace(recommended, clients=most)
        for many in scale.removals:
            least = LEAST[many]
            held = kept("left out", case, experiment.left_out, many=many)
            about = f"{case.clients} clients {name}, without any {many}"
            shown = f"({held['certified']:.4f}; {held['of the bound']:.2f} of the bound)"
            said[f"{about}: at least {least:g}"] = f"{word(held['certified'] >= least)} {shown}"
            said[f"{about}: {held['trainings']} trainings without differ nowhere"] = word(
                held["differing"] == 0
            )
            print(about, held, flush=True)
    found = {}
    print(f"| clients | setting | {' | '.join(COLUMNS)} |")
    for case in cases(scale):
        found[case] = kept("cases", case, experiment.measured)
        print(row(case, found[case]), flush=True)
    drawn(found).savefig(out / "rounds.png", dpi=80)
    for clients in scale.settings:
        case = replace(RECOMMENDED["from a public head"], clients=clients)
        together = kept("joint", case, experiment.joint)
        print(f"joint, {clients} clients: {together}", flush=True)
    report(out, asked.scale, DIFFERS, said, time.perf_counter() - began)
    return said


if __name__ == "__main__":
    main()
