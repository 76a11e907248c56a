"""Certified robustness in federated learning: training alone, together, personalised, and in a
mixture of both.

``python -m benchmarks.papers.alfarra2022 --data DIR --scale paper --device cuda`` trains and
certifies what Figures 1 to 10 of Alfarra et al. 2022 show: rotation, translation and pixel noise,
CIFAR-10 and MNIST, 4 to 100 clients. A client trains alone (local), with the others (federated),
goes on alone from their model (personalised), or descends Eq. 5 (mixture), with lambda the weight
of its own loss: 1 is local training, and the smaller, the nearer to the mean.

Taken from the authors' code where the text differs or is silent: 60 epochs, not 90; the step falls
tenfold every 20 epochs in local training and every 30 otherwise; personalisation is 4 epochs more
at the last step size; rotations are uniform on sigma pi radians, translations Gaussian in half
images. Taken from the text where the code lacks it: Eq. 5. Each client keeps its model from round
to round there, and is certified with it. Figure 5's "robustness degrades as local models diverge"
is also tried without a long way to train: as a mixture in the rounds of personalisation only; and
for one law with four times the rounds, as Eq. 5 holds a client so close to the mean that a small
lambda learns slowly. Other than both: momentum starts afresh in every round; no random crops and
flips; noise acts on images in [0, 1].

Every run of many rounds is kept in ``--out`` as it goes, and every case's numbers are: what is
there is not done again. The last two states of a run are kept; one of 100 clients of ResNet-18,
each with a model of its own, takes 4.6 GB.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks import networks
from benchmarks.papers import recipe
from benchmarks.papers.recipe import sure
from rsfl import demo, fed, runs, train
from rsfl.deform import Affine, Deformation, Rotation, Translation
from rsfl.noise import Gaussian, Law
from rsfl.smooth import DeformationSmoother, Smoother

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPOCHS, ALPHA, SEED, CLASSES = 2, 0.001, 0, 10  # epochs a round
LONGER = 4
LAMBDAS = (0.1, 0.5, 0.9)
LOCAL, FEDERATED, PERSONALISED, NOMINAL, AFFINE = (
    "local",
    "federated",
    "personalised",
    "nominal",
    "affine",
)
Numbers = dict[str, Any]


def law(name: str, sigma: float) -> Law | None:
    """What a perturbation of the paper is here; none for nominal training."""
    laws: dict[str, Callable[[float], Law | None]] = {
        "nominal": lambda _: None,
        "rotation": lambda sigma: Rotation(sigma * math.pi),
        "translation": Translation,
        "affine": Affine,
        "pixel": Gaussian,
    }
    return laws[name](sigma)


@dataclass(frozen=True)
class Case:
    """One way to train, and what it is certified against.

    Args:
        data: The data set.
        law: The perturbation.
        sigma: Its size, in the paper's units.
        clients: How many share the data.
        shared: What training in rounds augments with: the law itself unless named, "nominal" for
            nothing.
        mixture: Lambda in these rounds; None for federated averaging, 1 for local training.
        tuned: Lambda in the rounds after them, which augment with the law; 1 for personalisation,
            None for no such.
        longer: How many times as long these rounds go on as the scale says, the schedule with them.
    """

    data: str = "cifar10"
    law: str = "rotation"
    sigma: float = 0.1
    clients: int = 10
    shared: str | None = None
    mixture: float | None = None
    tuned: float | None = None
    longer: int = 1

    @property
    def rounds(self) -> "Case":
        """The case whose model the rounds in common end with."""
        shared = self.shared or self.law
        return replace(
            self,
            law=shared,
            sigma=0.0 if shared == "nominal" else self.sigma,
            shared=None,
            tuned=None,
        )

    @property
    def task(self) -> "Case":
        """The case without the way to train."""
        return Case(self.data, self.law, self.sigma, self.clients, longer=self.longer)

    @property
    def way(self) -> str:
        """The way to train, in words."""
        if self.mixture is not None:
            return LOCAL if self.mixture == 1 else f"mixture {self.mixture:g}"
        if self.tuned is None:
            return self.shared or FEDERATED
        last = PERSONALISED if self.tuned == 1 else f"last rounds {self.tuned:g}"
        return f"{self.shared}, then {last}" if self.shared else last

    def __str__(self) -> str:
        return f"{self.data}, {self.title}"

    @property
    def title(self) -> str:
        """The task in words, but for the data set."""
        more = f", {self.longer} x rounds" if self.longer > 1 else ""
        return f"{self.law} {self.sigma:g}, {self.clients} clients{more}"


@dataclass(frozen=True)
class Scale:
    """How much of everything. The first data set is the one of all figures, the others are rows
    beside it.

    Args:
        laws: Perturbations by data set.
        clients: Numbers of clients; the second is that of all figures but the one on their number.
        network: "resnet18" or "small".
        images: Training images in all.
        rounds: Rounds in common.
        tuning: Rounds after them.
        lr: First step size.
        batch: Images a batch.
        decay: L2 decay.
        measured: Clients that are certified, at most.
        own: Test images of each of them, at most.
        tested: Test images in all, at most.
        n0: Votes that select.
        n: Votes that estimate.
    """

    laws: Mapping[str, tuple[tuple[str, float], ...]]
    clients: tuple[int, ...] = (4, 10, 20, 100)
    network: str = "resnet18"
    images: int = 60_000
    rounds: int = 30
    tuning: int = 2
    lr: float = 0.1
    batch: int = 64
    decay: float = 5e-4
    measured: int = 100
    own: int = 500
    tested: int = 10_000
    n0: int = 100
    n: int = 100_000


PERTURBATIONS = (
    ("rotation", 0.1),
    ("rotation", 0.5),
    ("translation", 0.1),
    ("translation", 0.5),
    ("pixel", 0.12),
    ("pixel", 0.5),
)
SMALL = Scale(
    {"mnist": PERTURBATIONS, "cifar10": (("rotation", 0.1),)},
    network="small",
    images=2000,
    rounds=15,
    tuning=4,
    lr=0.05,
    batch=16,
    measured=10,
    own=60,
    tested=240,
    n0=50,
    n=200,
)
SCALES = {
    "smoke": replace(
        SMALL,
        laws={"digits": (("rotation", 0.1), ("pixel", 0.12))},
        clients=(2, 4),
        images=400,
        rounds=3,
        tuning=1,
        lr=0.1,
        measured=3,
        own=6,
        n=30,
        n0=10,
    ),
    "small": SMALL,
    "paper": Scale({"cifar10": PERTURBATIONS, "mnist": PERTURBATIONS}),
}


def figures(scale: Scale) -> dict[str, list[Case]]:
    """The cases of each figure. A case of several figures is one run."""
    main, base, most = next(iter(scale.laws)), scale.clients[1], scale.clients[-1]
    found: dict[str, list[Case]] = {
        "clients": [],
        "nominal": [],
        "affine": [],
        "mixture": [],
        "longer": [],
    }
    for data, laws in scale.laws.items():
        for name, sigma in laws:
            here = Case(data, name, sigma, base)
            local = replace(here, mixture=1.0)
            if name != "pixel":
                numbers = (
                    scale.clients if name == "rotation" else scale.clients[:2]
                )  # as the paper has them
                for clients in numbers if data == main else (base,):
                    ways = (local, here, replace(here, tuned=1.0))
                    found["clients"] += [replace(case, clients=clients) for case in ways]
                affine = replace(here, shared="affine")
                found["affine"] += [affine, replace(affine, tuned=1.0)] if data == main else []
            nominal = replace(here, shared="nominal")
            ways = (local, nominal, replace(nominal, tuned=1.0))
            found["nominal"] += ways
            if data == main and name == "rotation":
                found["nominal"] += [replace(case, clients=most) for case in ways]
            mixtures = [here, *(replace(here, mixture=value) for value in LAMBDAS), local]
            found["mixture"] += mixtures
            if not found["longer"]:
                found["longer"] += [replace(case, longer=LONGER) for case in mixtures]
            if name == "rotation":
                found["mixture"] += [replace(here, tuned=value) for value in (*LAMBDAS, 1.0)]
    return found


class Experiment:
    """The data, and what is done on it."""

    def __init__(self, scale: str, data: Path, device: str, out: Path) -> None:
        self.name, self.scale, self.folder, self.device, self.out = (
            scale,
            SCALES[scale],
            data,
            device,
            out,
        )

    @cached_property
    def data(self) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Training and test images and labels, by data set; of the training images as many as the
        scale has."""
        read: dict[str, Callable[[Path], tuple[Tensor, Tensor, Tensor, Tensor]]] = {
            "mnist": recipe.mnist,
            "cifar10": recipe.cifar10,
            "digits": lambda _: demo.digits(),
        }
        found = {}
        for name in self.scale.laws:
            x, y, test_x, test_y = (part.to(self.device) for part in read[name](self.folder))
            order = np.random.default_rng(SEED).permutation(len(x))[: self.scale.images]
            found[name] = x[order].float(), y[order], test_x.float(), test_y
        return found

    def settings(self, case: Case) -> dict[str, Any]:
        """All that a case's numbers depend on."""
        return {
            "scale": self.name,
            **asdict(self.scale),
            "case": asdict(case),
            "device": self.device,
        }

    def sgd(self, case: Case, mixture: float | None, *, shift: int = 0) -> fed.SGD:
        """How clients train against a law; rounds count from 1 + ``shift`` in the schedule."""
        every = (20 if mixture == 1 else 30) * case.longer

        def lr(index: int) -> float:
            return self.scale.lr * 0.1 ** ((index + shift - 1) * EPOCHS // every)

        return fed.SGD(
            lr=lr,
            batch_size=self.scale.batch,
            epochs=EPOCHS,
            momentum=0.9,
            decay=self.scale.decay,
            mixture=mixture,
            loss=train.CrossEntropy(law(case.law, case.sigma)),
        )

    def members(self, case: Case, trainer: fed.SGD) -> list[fed.Client]:
        """The clients, who share the training images equally."""
        x, y, *_ = self.data[case.data]
        return fed.clients(x, y, fed.partition.equal(len(x), case.clients, seed=SEED), trainer)

    def network(self, data: str) -> nn.Module:
        """The untrained network, the same for all cases of a data set."""
        channels, side = self.data[data][0].shape[1:3]
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            if self.scale.network == "resnet18":
                return networks.resnet18(channels, CLASSES).to(self.device)
            return networks.small_cnn(channels, side, CLASSES).to(self.device)

    def together(self, case: Case) -> fed.Result:
        """The rounds in common; those that are there already are read."""
        folder = self.out / "rounds" / recipe.key(self.settings(case))
        members = self.members(case, self.sgd(case, case.mixture))
        server = fed.Server(self.network(case.data), members, seed=SEED)
        return server.run(self.scale.rounds * case.longer, checkpoint=folder)

    def models(self, case: Case) -> tuple[Mapping[int, nn.Module], int]:
        """Each client's model, and how many updates were thrown away on the way to them."""
        done, before, more = (
            self.together(case.rounds),
            self.scale.rounds * case.longer,
            self.scale.tuning,
        )
        entries = list(done.ledger.entries)
        models: Mapping[int, nn.Module] = done.models or dict.fromkeys(
            range(case.clients), done.model
        )
        if case.tuned == 1:
            members = self.members(case, self.sgd(case, None))
            models = fed.personalise(done.model, members, more, after=before, seed=SEED)
        elif case.tuned is not None:
            members = self.members(case, self.sgd(case, case.tuned, shift=before))
            last = fed.Server(done.model, members, seed=SEED + 1).run(more)
            models, entries = last.models, [*entries, *last.ledger.entries]
        return models, sum(
            one.outcome != "used" for entry in entries for one in entry.round.participants
        )

    def measured(self, case: Case) -> Numbers:
        """All the numbers of a case: the curve, the mean radius and the radii where right, of each
        measured client."""
        begin = process_time()
        models, rejected = self.models(case)
        *_, x, y = self.data[case.data]
        noise = law(case.law, case.sigma)
        assert noise is not None, "nothing is certified against no law"
        radii = np.linspace(0, np.max(noise.radius(ALPHA ** (1 / self.scale.n))), 61)
        clients = min(case.clients, self.scale.measured)
        images = min(self.scale.own, self.scale.tested // clients)
        numbers: Numbers = {"radii": radii.tolist(), "curves": [], "mean radius": [], "scores": []}
        for client, share in enumerate(
            fed.partition.equal(len(x), case.clients, seed=SEED + 1)[:clients]
        ):
            # The share is sorted, and a data set may begin with its easy images.
            chosen = np.random.default_rng((SEED, client)).permutation(share)[:images]
            where = torch.from_numpy(chosen).to(x.device)
            found = smoothed(models[client], noise).certify(
                x[where], n0=self.scale.n0, n=self.scale.n, alpha=ALPHA, seed=SEED, index=where
            )
            truth = y[where].cpu().numpy()
            numbers["curves"].append(
                np.asarray(runs.certified_accuracy(found, truth, radii)).tolist()
            )
            numbers["mean radius"].append(runs.average_certified_radius(found, truth))
            numbers["scores"].append(
                torch.where(found.label == y[where], found.radius, 0.0).tolist()
            )
        return {
            **numbers,
            "distance": distance(models),
            "rejected": rejected,
            "seconds": process_time() - begin,
        }


def smoothed(model: nn.Module, noise: Law) -> Smoother:
    """The model, smoothed by a law."""
    if isinstance(noise, Deformation):
        return DeformationSmoother(model, noise, CLASSES)
    return Smoother(model, noise, CLASSES)


def distance(models: Mapping[int, nn.Module]) -> float:
    """How far the clients' parameters are from their mean, root mean square, over the norm of the
    mean."""
    rows = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in models.values()]
    mean = torch.stack(rows).mean(dim=0)
    squares = [float((row - mean).double().square().sum()) for row in rows]
    return math.sqrt(np.mean(squares)) / float(mean.double().norm())


class Verdicts:
    """The paper's claims, checked over the saved numbers.

    Args:
        found: The numbers by case.
    """

    def __init__(self, found: Mapping[Case, Numbers]) -> None:
        self.by_task: dict[Case, dict[str, Numbers]] = defaultdict(dict)
        for case, numbers in found.items():
            self.by_task[case.task][case.way] = numbers
        self.words: dict[str, str] = {}

    def radius(self, task: Case, way: str) -> float:
        """The average certified radius."""
        return float(np.mean(self.by_task[task][way]["mean radius"]))

    def gain(self, task: Case, better: str, worse: str) -> tuple[float, float]:
        """By how much one way certifies further than another, a mean over the same test images; its
        standard error."""
        here = self.by_task[task]
        return recipe.difference(
            [np.concatenate(here[better]["scores"])], [np.concatenate(here[worse]["scores"])]
        )

    def tasks(self, *ways: str) -> list[Case]:
        """The tasks on which all these ways have been tried."""
        return [task for task, tried in self.by_task.items() if set(ways) <= set(tried)]

    def say(self, claim: str, gaps: Mapping[str, tuple[float, float, str]]) -> None:
        """A claim that gaps are positive, from each with its error and in words, by what they are
        about; the verdict on all comes first."""
        if gaps:
            first = recipe.verdict((value, error) for value, error, _ in gaps.values())
            self.words[claim] = f"{first}: " + "; ".join(
                f"{about}: {sure(value, error)} ({shown})"
                for about, (value, error, shown) in gaps.items()
            )

    def more(self, claim: str, better: str, worse: str, tasks: Iterable[Case]) -> None:
        """Claim that one way certifies more than another on each of some tasks."""
        gaps = {}
        for task in tasks:
            value, error = self.gain(task, better, worse)
            shown = (
                f"{self.radius(task, worse):.3g} to {self.radius(task, better):.3g}, +- {error:.2g}"
            )
            gaps[str(task)] = (value, error, shown)
        self.say(claim, gaps)

    def grows(self, claim: str, better: str, worse: str) -> None:
        """Claim that the gain is larger with the most clients than with the fewest."""
        rows: dict[Case, list[Case]] = defaultdict(list)
        for task in self.tasks(better, worse):
            rows[replace(task, clients=0)].append(task)
        found = {}
        for tasks in rows.values():
            if len(tasks) > 1:
                few, many = (pick(tasks, key=lambda task: task.clients) for pick in (min, max))
                gains = [self.gain(task, better, worse) for task in (few, many)]
                error = math.hypot(gains[0][1], gains[1][1])
                about = f"{few.data}, {few.law} {few.sigma:g}, "
                about += f"{few.clients} against {many.clients} clients"
                shown = f"{gains[0][0]:.3g} to {gains[1][0]:.3g}"
                found[about] = (gains[1][0] - gains[0][0], error, shown)
        self.say(claim, found)

    def alike(self, claim: str, one: str, other: str, *, within: float = 0.1) -> None:
        """Claim that two ways certify as much, to a tenth."""
        gaps = {}
        for task in self.tasks(one, other):
            value, error = self.gain(task, one, other)
            room = within * self.radius(task, other)
            shown = f"{self.radius(task, other):.3g} to {self.radius(task, one):.3g}"
            gaps[str(task)] = (room - abs(value), error, shown)
        self.say(claim, gaps)

    def wider(self, claim: str, wide: str, narrow: str) -> None:
        """Claim that clients differ more in one way than in another, over all tasks together."""
        logs, errors = [], []
        for task in self.tasks(wide, narrow):
            spreads = [
                np.std(self.by_task[task][way]["mean radius"], ddof=1) for way in (wide, narrow)
            ]
            if min(spreads) > 0:
                logs.append(math.log(spreads[0] / spreads[1]))
                # The logarithm of a standard deviation of k values has variance 1 / (2 (k - 1)),
                # and here are two.
                errors.append(1 / (len(self.by_task[task][wide]["mean radius"]) - 1))
        if logs:
            value, error = float(np.mean(logs)), math.sqrt(sum(errors)) / len(logs)
            low, middle, high = (math.exp(value + by * error) for by in (-2, 0, 2))
            shown = f"{middle:.2f} times, {low:.2f} to {high:.2f}, over {len(logs)} tasks"
            self.words[claim] = f"{sure(value, error)}: standard deviation over clients {shown}"

    def nearer(self, claim: str, ways: Sequence[str]) -> None:
        """Claim that of several ways the one that stays closest to the mean model certifies more
        than the farthest."""
        gaps = {}
        for task in self.tasks(*ways):
            far = {way: self.by_task[task][way]["distance"] for way in ways}
            order = sorted(ways, key=far.__getitem__)
            value, error = self.gain(task, order[0], order[-1])
            shown = ", ".join(f"{far[way]:.2g}: {self.radius(task, way):.3g}" for way in order)
            gaps[str(task)] = (value, error, f"by distance {shown}, +- {error:.2g}")
        self.say(claim, gaps)


def verdicts(scale: Scale, found: Mapping[Case, Numbers]) -> dict[str, str]:
    """The verdict on each claim, with the average certified radii that it rests on."""
    check, nominal, affine = (
        Verdicts(found),
        f"{NOMINAL}, then {PERSONALISED}",
        f"{AFFINE}, then {PERSONALISED}",
    )
    few, base, most = scale.clients[0], scale.clients[1], scale.clients[-1]
    together = check.tasks(FEDERATED, LOCAL)
    enough = [task for task in together if task.clients > few]
    check.more(
        "federated training certifies more than local, if data are few", FEDERATED, LOCAL, enough
    )
    sparse = [task for task in together if task.clients == few]
    check.more("even if clients are few (the paper: hardly)", FEDERATED, LOCAL, sparse)
    check.grows("the more clients, the more federated training gains on local", FEDERATED, LOCAL)
    check.alike(
        "personalised certifies as much as federated, if both saw the law", PERSONALISED, FEDERATED
    )
    check.wider("clients differ more after local than after federated training", LOCAL, FEDERATED)
    check.wider("clients differ more after local training than personalised", LOCAL, PERSONALISED)
    check.more(
        "personalisation makes nominal models robust",
        nominal,
        NOMINAL,
        check.tasks(nominal, NOMINAL),
    )
    small = {
        task.law: min(other.sigma for other in check.by_task if other.law == task.law)
        for task in check.by_task
    }
    rows = check.tasks(nominal, LOCAL)
    for words, tasks in (
        (
            "small sigma",
            [task for task in rows if task.clients == base and task.sigma == small[task.law]],
        ),
        (
            "large sigma (the paper: as much)",
            [t for t in rows if t.clients == base and t.sigma > small[t.law]],
        ),
        ("most clients", [task for task in rows if task.clients == most]),
    ):
        check.more(
            f"nominal, then personalised certifies more than local: {words}", nominal, LOCAL, tasks
        )
    check.grows(
        "the more clients, the more nominal, then personalised gains on local", nominal, LOCAL
    )
    check.more(
        "personalisation helps after training with affine maps",
        affine,
        AFFINE,
        check.tasks(affine, AFFINE),
    )
    mixtures = [f"mixture {value:g}" for value in LAMBDAS]
    for way in mixtures:
        check.more(
            f"{way} certifies more than federated", way, FEDERATED, check.tasks(way, FEDERATED)
        )
    for near, far in combinations([*mixtures, LOCAL], 2):
        check.more(f"{near} certifies more than {far}", near, far, check.tasks(near, far))
    check.nearer("mixtures: the farther from the mean, the less is certified", [*mixtures, LOCAL])
    last = [*(f"last rounds {value:g}" for value in LAMBDAS), PERSONALISED]
    check.nearer("mixtures in the last rounds only: the same", last)
    for way in mixtures:
        check.wider(f"clients differ more after local training than {way}", LOCAL, way)
    return check.words


def curves(axis: "Axes", tried: Mapping[str, Numbers], *, each: bool = False) -> None:
    """Certified accuracy of several ways: mean and band from the worst client to the best, or every
    client."""
    for number, (way, numbers) in enumerate(tried.items()):
        found = fed.PerClient(dict(enumerate(np.array(numbers["curves"]))))
        radii, color = numbers["radii"], f"C{number}"
        if each:
            for row, client in enumerate(found.values.values()):
                axis.plot(radii, client, color=color, linewidth=0.6, label=None if row else way)
        else:
            axis.plot(radii, found.mean, color=color, label=way)
            axis.fill_between(radii, found.min, found.max, color=color, alpha=0.15, linewidth=0)
    axis.set(ylim=(0, 1.02), xlim=(0, None))
    axis.grid(alpha=0.3)


def panels(path: Path, panels: Mapping[str, Mapping[str, Numbers]], *, each: bool = False) -> None:
    """One figure of curves, a panel for each title."""
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    drawing = Figure(figsize=(9, 3.4 if rows == 1 else 2.7 * rows), layout="constrained")
    axes = drawing.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, tried) in zip(axes.flat, panels.items(), strict=False):
        curves(axis, tried, each=each)
        axis.set_title(title, fontsize=9)
    for row in axes:
        row[0].set_ylabel("certified accuracy")
    axes.flat[0].legend(fontsize=7)
    drawing.supxlabel(UNITS, fontsize=8)
    save(drawing, path)


def save(drawing: "Figure", path: Path) -> None:
    """A picture in few colours: the blended bands make a file of all their shades four times as
    large."""
    from PIL import Image

    whole = BytesIO()
    drawing.savefig(whole, format="png", dpi=80)
    Image.open(whole).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


UNITS = "radius: rotation in radians, translation in half images (l2), pixels in l2"


def by_lambda(path: Path, check: Verdicts, tasks: Sequence[Case]) -> None:
    """The average certified radius over that of federated training, by lambda, in all rounds and in
    the last ones."""
    from matplotlib.figure import Figure

    laws = list(dict.fromkeys(task.law for task in tasks))
    drawing = Figure(figsize=(9, 3.4), layout="constrained")
    axes = drawing.subplots(1, len(laws), sharey=True, squeeze=False)[0]
    values = [*LAMBDAS, 1.0]
    ways = {
        "all rounds": [*(f"mixture {value:g}" for value in LAMBDAS), LOCAL],
        "last rounds": [*(f"last rounds {value:g}" for value in LAMBDAS), PERSONALISED],
    }
    for number, task in enumerate(tasks):
        axis = axes[laws.index(task.law)]
        for (words, names), style in zip(ways.items(), ("o-", "s:"), strict=True):
            if set(names) <= set(check.by_task[task]):
                base = check.radius(task, FEDERATED)
                gains = np.array([check.gain(task, name, FEDERATED) for name in names]) / base
                label = f"sigma {task.sigma:g}, {words}"
                axis.errorbar(
                    values,
                    1 + gains[:, 0],
                    2 * gains[:, 1],
                    fmt=style,
                    color=f"C{number}",
                    label=label,
                )
    for axis, name in zip(axes, laws, strict=True):
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("lambda (1: local, personalised)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("average certified radius, federated = 1")
    save(drawing, path)


def draw(figure: str, cases: Sequence[Case], found: Mapping[Case, Numbers], out: Path) -> None:
    """The pictures of one figure."""
    check = Verdicts({case: found[case] for case in cases})
    for data in dict.fromkeys(case.data for case in cases):
        tasks = [task for task in check.by_task if task.data == data]
        if figure == "clients":
            for name, sigma in dict.fromkeys((task.law, task.sigma) for task in tasks):
                row = {
                    task.title: check.by_task[task]
                    for task in tasks
                    if (task.law, task.sigma) == (name, sigma)
                }
                panels(out / f"clients-{data}-{name}-{sigma:g}.png", row)
            each = {
                task.title: {way: check.by_task[task][way] for way in (LOCAL, PERSONALISED)}
                for task in tasks[:2]
            }
            panels(out / f"each-{data}.png", each, each=True)
        else:
            titled = {task.title: check.by_task[task] for task in tasks}
            if figure in ("mixture", "longer"):
                by_lambda(out / f"{figure}-lambda-{data}.png", check, tasks)
                all_rounds = (FEDERATED, LOCAL, *(f"mixture {value:g}" for value in LAMBDAS))
                titled = {
                    title: {way: tried[way] for way in all_rounds}
                    for title, tried in titled.items()
                }
            panels(out / f"{figure}-{data}.png", titled)


def differs(scale: Scale, found: Mapping[Case, Numbers]) -> list[str]:
    """What is other than in the paper."""
    lines = [
        "schedules of the authors' scripts, where a run is 60 epochs, not the text's 90; "
        "momentum starts afresh in "
        "every round; one run a case",
        "no random crops and flips; noise on images in [0, 1], before the normalisation that is "
        "in the network",
    ]
    if scale.network != "resnet18":
        lines.append(
            f"{scale.network} convolutional network of two layers; data sets "
            f"{', '.join(scale.laws)}; {scale.images} "
            f"training images in all; {scale.rounds} rounds of {EPOCHS} epochs, then "
            f"{scale.tuning}; step size "
            f"{scale.lr}, batches of {scale.batch}"
        )
        lines.append(
            f"{scale.n0} + {scale.n} votes; {scale.measured} clients at most are certified, on "
            f"{scale.own} test "
            f"images each at most and {scale.tested} in all"
        )
    rejected = [
        f"{case}, {case.way}: {n}" for case, numbers in found.items() if (n := numbers["rejected"])
    ]
    if rejected:
        lines.append("updates that were thrown away: " + "; ".join(rejected))
    return lines


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Run what is asked for; the verdicts."""
    parser = recipe.options(__doc__, "alfarra2022")
    parser.add_argument(
        "--figures", nargs="*", help="only these of: clients nominal affine mixture longer"
    )
    asked = parser.parse_args(arguments)
    out: Path = asked.out / asked.scale
    experiment = Experiment(asked.scale, asked.data, asked.device, out)
    chosen = figures(experiment.scale)
    wanted = recipe.chosen(parser, asked.figures, chosen)
    found: dict[Case, Numbers] = {}
    with tqdm(dict.fromkeys(case for figure in wanted for case in chosen[figure])) as bar:
        for case in bar:
            bar.set_description(f"{case}, {case.way}")
            found[case] = recipe.once(
                out / "cases", experiment.settings(case), partial(experiment.measured, case)
            )
    for figure in wanted:
        draw(figure, chosen[figure], found, out)
    words = verdicts(experiment.scale, found)
    seconds = sum(numbers["seconds"] for numbers in found.values())
    recipe.report(out, asked.scale, differs(experiment.scale, found), words, seconds)
    return words


if __name__ == "__main__":
    main()
