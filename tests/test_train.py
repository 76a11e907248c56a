"""Losses against hand computations, and a loop that a kill does not change."""

import copy
import math
import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rsfl import _draws, train
from rsfl.attacks import PGD, OnePoint, SmoothAdvDDN, SmoothAdvPGD
from rsfl.noise import Gaussian, Uniform
from rsfl.smooth import Smoother
from rsfl.train import Adversarial, Batches, CrossEntropy, DatasetBatches, fit

LAW = Gaussian(0.25)
SMOOTHADV = Adversarial(
    attack=SmoothAdvPGD(epsilon=0.5, steps=2, samples=3), law=LAW, num_classes=3
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def blobs(n=90, seed=0):
    """Three classes in [0, 1]^4, some way apart."""
    y = torch.arange(n) % 3
    centres = torch.tensor([[0.2, 0.2, 0.5, 0.5], [0.8, 0.2, 0.5, 0.5], [0.5, 0.8, 0.5, 0.5]])
    return (centres[y] + 0.08 * torch.randn(n, 4, generator=seeded(seed))).clamp(0, 1), y


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- losses ----------------------------------------------------------------------------------------


def test_plain_and_noisy_cross_entropy():
    model, (x, y) = network().eval(), blobs(12)
    plain = functional.cross_entropy(model(x), y)
    assert CrossEntropy()(model, x, y).item() == pytest.approx(plain.item(), rel=1e-6)
    noise = LAW.sample((12, 4), generator=seeded(3))
    expected = functional.cross_entropy(model(x + noise), y)
    assert CrossEntropy(LAW)(model, x, y, seeded(3)).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    assert CrossEntropy(LAW).losses(model(x), y).shape == (12,)


def test_the_smoothadv_loss_is_cross_entropy_at_the_attacked_point_under_the_attack_noise():
    model, (x, y) = network().eval(), blobs(12)
    attacked = SMOOTHADV.attack(Smoother(model, LAW, 3), x, y, generator=seeded(5))
    each = [functional.cross_entropy(model(attacked.point + noise), y) for noise in attacked.noise]
    assert SMOOTHADV(model, x, y, seeded(5)).item() == pytest.approx(sum(each).item() / 3, rel=1e-6)
    single = Adversarial(attack=SMOOTHADV.attack, law=LAW, num_classes=3, multi_noise=False)
    assert single(model, x, y, seeded(5)).item() == pytest.approx(each[0].item(), rel=1e-6)
    assert each[0].item() != pytest.approx(sum(each).item() / 3, rel=1e-3)


def test_the_plain_adversarial_loss_knows_no_noise():
    model, (x, y) = network().eval(), blobs(12)
    attack = PGD(epsilon=0.1, steps=3)
    point = attack(Smoother(model, LAW, 3), x, y).point
    loss = Adversarial(attack=attack, law=LAW, num_classes=3)(model, x, y)
    assert loss.item() == pytest.approx(functional.cross_entropy(model(point), y).item(), rel=1e-6)
    assert loss > functional.cross_entropy(model(x), y)


@pytest.mark.parametrize(
    "attack",
    [PGD(epsilon=0.1, steps=2), SMOOTHADV.attack, OnePoint(epsilon=0.1, steps=2, samples=2)],
    ids=["pgd", "smoothadv", "one-point"],
)
def test_the_attack_moves_neither_modes_nor_statistics_nor_gradients(attack):
    model, (x, y) = network(dropout=0.5), blobs(12)
    model[4].eval()  # a mode of its own
    modes = [m.training for m in model.modules()]
    Adversarial(attack=attack, law=LAW, num_classes=3)(model, x, y, seeded())
    assert [m.training for m in model.modules()] == modes
    assert model[1].num_batches_tracked == 1  # the loss's own pass, and no other
    assert all(p.grad is None for p in model.parameters())


def test_the_gradient_reaches_every_parameter():
    model, (x, y) = network(), blobs(12)
    SMOOTHADV(model, x, y, seeded()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_warm_up():
    ddn = Adversarial(
        attack=SmoothAdvDDN(epsilon=0.8, steps=2, samples=1, start=0.5), law=LAW, num_classes=3
    )
    budgets = [
        loss.warmed_up(epoch, 4).attack.epsilon
        for loss in (SMOOTHADV, ddn)
        for epoch in (1, 2, 3, 4, 9)
    ]
    assert budgets == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert SMOOTHADV.warmed_up(1, 0) is SMOOTHADV
    assert ddn.warmed_up(1, 4).attack.start == 0.5
    with pytest.raises(ValueError, match="epoch must be a count of at least 1"):
        SMOOTHADV.warmed_up(0, 4)


def test_losses_serve_other_laws():
    """l1 budgets for uniform noise; the loss needs nothing else."""
    model, (x, y) = network().eval(), blobs(12)
    loss = Adversarial(
        attack=SmoothAdvPGD(epsilon=0.3, steps=3, samples=2), law=Uniform(0.5), num_classes=3
    )
    assert loss(model, x, y, seeded()).isfinite()


def test_pseudo_labels():
    model, (x, _) = network(dropout=0.5), blobs(50)
    modes = [m.training for m in model.modules()]
    labels = train.pseudo_labels(model, x, batch_size=7)
    assert torch.equal(labels, model.eval()(x).argmax(1))
    assert modes == [True] * len(modes)
    assert not labels.requires_grad
    with pytest.raises(ValueError, match="finite logits"):
        train.pseudo_labels(model, x * math.nan)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(LAW), SMOOTHADV])
def test_bad_labels_are_named(loss):
    model, (x, y) = network(), blobs(12)
    with pytest.raises(ValueError, match=r"y must lie in 0 ... 2, got 7 at index 1"):
        loss(model, x, torch.cat([y[:1], torch.tensor([7]), y[2:]]), seeded())
    with pytest.raises(TypeError, match="y must be an int64 tensor"):
        loss(model, x, y.float(), seeded())


def test_settings_are_checked():
    with pytest.raises(TypeError, match=r"attack must be an attacks.Attack, got 0.5"):
        Adversarial(attack=0.5, law=LAW, num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be a count of at least 1"):
        Adversarial(attack=PGD(epsilon=1, steps=1), law=LAW, num_classes=0)
    with pytest.raises(ValueError, match="equally many, at least 1, got 3 and 2"):
        Batches(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="size must be a count of at least 1"):
        Batches(torch.zeros(3, 1), torch.zeros(3), size=0)


# -- the loop --------------------------------------------------------------------------------------


def test_batches_depend_on_seed_and_epoch_alone():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    batches = Batches(x, y, size=4)
    first = [part.tolist() for _, part in batches(1)]
    assert [len(part) for part in first] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(label for part in first for label in part) == list(range(10))
    torch.rand(5)
    assert [part.tolist() for _, part in batches(1)] == first
    assert [part.tolist() for _, part in batches(2)] != first
    assert [part.tolist() for _, part in Batches(x, y, size=4, seed=1)(1)] != first
    assert all(torch.equal(images[:, 0], part.float()) for images, part in batches(3))


class Augmented(Dataset):
    """Items that draw from the global random state."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return (self.x[index] + 0.1 * torch.randn(4)).clamp(0, 1), self.y[index]


def test_a_data_set_comes_in_the_order_of_its_tensors():
    x, y = blobs()
    source, tensors = (
        DatasetBatches(TensorDataset(x, y), size=16, seed=3),
        Batches(x, y, size=16, seed=3),
    )
    assert len(source) == len(tensors) == 6
    for epoch in (1, 2):
        torch.rand(1)
        for (a, b), (c, d) in zip(source(epoch), tensors(epoch), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    state = torch.get_rng_state()
    list(source(1))
    assert torch.equal(torch.get_rng_state(), state)
    one, other = network(), network()
    run(one, source=source)
    run(other, source=tensors)
    assert torch.equal(weights(one), weights(other))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_random_items_are_keyed_too_and_so_a_run_over_them_resumes(tmp_path, workers):
    source = DatasetBatches(Augmented(*blobs(40)), size=16, workers=workers)
    whole, resumed = network(dropout=0.3), network(dropout=0.3)
    run(whole, epochs=2, source=source)
    run(resumed, tmp_path / "run", epochs=1, source=source)
    torch.rand(7)
    resumed = network(dropout=0.3)
    run(resumed, tmp_path / "run", epochs=2, source=source)
    assert torch.equal(weights(whole), weights(resumed))
    if workers:
        first, again, other = ([x for x, _ in source(epoch)] for epoch in (1, 1, 2))
        assert all(map(torch.equal, first, again))
        assert not torch.equal(torch.cat(first).sort(0).values, torch.cat(other).sort(0).values)


class Stream(IterableDataset):
    """It has a length, and inherits a method for items by index that it does not have."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: DatasetBatches(iter([])),
            TypeError,
            "dataset must have a length and items by index, got <list_it",
        ),
        (
            lambda: DatasetBatches(Stream()),
            TypeError,
            "dataset must have a length and items by index, got <.*Stream",
        ),
        (lambda: DatasetBatches([]), ValueError, "dataset must hold at least one item, got 0"),
        (
            lambda: DatasetBatches([1], size=0),
            ValueError,
            "size must be a count of at least 1.*got 0",
        ),
        (
            lambda: DatasetBatches([1], workers=-1),
            ValueError,
            "workers must be a count of at least 0.*got -1",
        ),
        (
            lambda: run(network(), source=DataLoader(TensorDataset(*blobs()))),
            TypeError,
            r"train.DatasetBatches\(dataset\) do, got DataLoader",
        ),
    ],
)
def test_other_sources_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_model_left_in_evaluation_mode_is_trained_with_a_warning():
    model = network().eval()
    with pytest.warns(
        UserWarning, match=r"model trains in evaluation mode; model.train\(\) switches it back"
    ) as caught:
        run(model, epochs=1)
    assert caught[0].filename == __file__
    assert not model.training
    assert model[1].num_batches_tracked == 0


def run(model, path=None, epochs=6, source=None, **settings):
    """A run with everything that has a state: momentum, a schedule, dropout, batch statistics, a
    warm-up."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    source = source or Batches(*blobs(), size=16)
    return fit(
        model,
        source,
        SMOOTHADV,
        optimizer,
        epochs=epochs,
        warmup=4,
        scheduler=scheduler,
        checkpoint=path,
        **settings,
    )


def test_fit_is_the_loop_that_one_would_write():
    x, y = blobs()
    model, own = network(), network()
    history = fit(
        model,
        Batches(x, y, size=32),
        CrossEntropy(LAW),
        torch.optim.SGD(model.parameters(), 0.5),
        epochs=3,
        seed=4,
    )
    optimizer = torch.optim.SGD(own.parameters(), 0.5)
    for epoch in (1, 2, 3):
        draws = _draws.generator(4, epoch, train.batches.LOSS)
        for images, labels in Batches(x, y, size=32)(epoch):
            loss = CrossEntropy(LAW)(own, images, labels, draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), own.state_dict().values(), strict=True)
    )
    assert [entry.epoch for entry in history] == [1, 2, 3]
    assert history[2].loss < history[0].loss
    assert all(entry.seconds > 0 for entry in history)


def test_fit_leaves_the_global_random_state_and_the_modes():
    model = network(dropout=0.5)
    model[1].eval()
    state = torch.get_rng_state()
    first = run(model, epochs=2, metrics=lambda m: {"norm": torch.rand(1) + m[0].weight.norm()})
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    torch.rand(3)  # another global state, the same run
    again = network(dropout=0.5)
    again[1].eval()
    second = run(again, epochs=2, metrics=lambda m: {"norm": torch.rand(1) + m[0].weight.norm()})
    assert [e.metrics for e in first] == [e.metrics for e in second]
    assert isinstance(first[0].metrics["norm"], float)


def test_metrics_measure_the_model_in_evaluation_mode_and_leave_training_alone():
    x, y = blobs()
    modes = []

    def metrics(model):
        modes.append([module.training for module in model.modules()])
        assert not torch.is_grad_enabled()
        return {"accuracy": (model(x + torch.rand_like(x)).argmax(1) == y).double().mean()}

    plain, measured = network(dropout=0.5), network(dropout=0.5)
    measured[2].eval()  # a mode of its own
    plain[2].eval()
    run(plain, epochs=3)
    history = run(measured, epochs=3, metrics=metrics)
    assert modes == [[False] * 6] * 3
    assert [module.training for module in measured.modules()] == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    assert all(
        torch.equal(value, measured.state_dict()[name])
        for name, value in plain.state_dict().items()
    )
    assert len({entry.metrics["accuracy"] for entry in history}) > 1


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@dataclass
class Slow:
    """A source that takes its time, so that a kill finds the run at work."""

    batches: Batches
    delay: float

    def __len__(self):
        return len(self.batches)

    def __call__(self, epoch):
        for batch in self.batches(epoch):
            time.sleep(self.delay)
            yield batch


def child(path, out):
    torch.set_num_threads(1)
    model = network(dropout=0.3)
    run(model, path, epochs=12, source=Slow(Batches(*blobs(), size=16), 0.01))
    torch.save(weights(model), out)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, seed):
    undisturbed = network(dropout=0.3)
    run(undisturbed, epochs=12)
    path, out, draw, kills = tmp_path / "run.rsfl", tmp_path / "weights.pt", random.Random(seed), 0
    context = multiprocessing.get_context("fork")
    while not out.exists():
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forking a process that has threads
            process = context.Process(target=child, args=(path, out))
            process.start()
        process.join(draw.uniform(0.02, 0.25) if kills < 6 else 60)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        process.close()
    assert kills >= 2  # the batches alone take three times the longest wait
    assert torch.equal(torch.load(out, weights_only=True), weights(undisturbed))


def test_the_error_names_the_batch(tmp_path):
    disk = {"broken": True}  # not a part of the source: it is repaired before the run goes on

    @dataclass
    class Failing(Slow):
        def __call__(self, epoch):
            for number, (x, y) in enumerate(self.batches(epoch), start=1):
                broken = disk["broken"] and (epoch, number) == (3, 2)
                yield (x * math.nan, y) if broken else (x, y)

    undisturbed, model = network(dropout=0.3), network(dropout=0.3)
    history = fitted(undisturbed, Batches(*blobs(), size=16), tmp_path / "undisturbed")
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 3, batch 2 of 6"):
        fitted(model, Failing(Batches(*blobs(), size=16), 0), tmp_path / "run")
    disk["broken"] = False
    resumed = network(
        seed=9, dropout=0.3
    )  # what it starts from does not matter: the checkpoint does
    again = fitted(resumed, Failing(Batches(*blobs(), size=16), 0), tmp_path / "run")
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert [e.loss for e in again] == [e.loss for e in history]
    done = copy.deepcopy(resumed)
    assert (
        fitted(done, Failing(Batches(*blobs(), size=16), 0), tmp_path / "run") == again
    )  # nothing is left to do
    assert torch.equal(weights(done), weights(undisturbed))


def fitted(model, source, path):
    return fit(
        model,
        source,
        CrossEntropy(LAW),
        torch.optim.Adam(model.parameters(), 0.01),
        epochs=5,
        checkpoint=path,
    )


def test_a_non_finite_loss_takes_no_step():
    model = network()
    before = weights(model)
    source, optimizer = Batches(*blobs(), size=90), torch.optim.SGD(model.parameters(), 1.0)
    with pytest.raises(FloatingPointError, match=r"loss is inf in epoch 1, batch 1 of 1"):
        fit(model, source, lambda *_: torch.tensor(math.inf), optimizer, epochs=1)
    assert torch.equal(weights(model), before)


def test_other_checkpoints_are_refused(tmp_path):
    path = tmp_path / "run.rsfl"
    run(network(), path, epochs=1)
    with pytest.raises(
        train.CheckpointError, match=r"belongs to another run: seed is 0 there, 1 here$"
    ):
        run(network(), path, seed=1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(train.CheckpointError, match="belongs to another run"):
        fit(model, Batches(*blobs()), SMOOTHADV, optimizer, epochs=2, checkpoint=path)
    run(network(), path, epochs=2)
    with pytest.raises(
        train.CheckpointError, match="already contains 2 epochs, more than epochs=1"
    ):
        run(network(), path, epochs=1)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:200] + b"!" + whole[201:], b"", b"something else"):
        path.write_bytes(broken)
        with pytest.raises(train.CheckpointError, match="truncated, corrupted or no checkpoint"):
            run(network(), path)
    with pytest.raises(train.CheckpointError, match="cannot be read"):
        run(network(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.rsfl"]


class Scaled:
    """A loss that is no dataclass and has settings all the same."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, model, x, y, generator):
        return self.scale * functional.cross_entropy(model(x), y)


@dataclass
class Plain:
    """A run and its settings, one of which another run has otherwise."""

    source: object
    loss: object = CrossEntropy(LAW)
    rate: float = 0.1
    momentum: float = 0.9
    dropout: float = 0.3
    gamma: float = 0.5
    frozen: bool = False
    head: bool = False

    def fit(self, path, epochs):
        model = network(dropout=self.dropout)
        model[0].weight.requires_grad_(not self.frozen)
        held = model[4].parameters() if self.head else model.parameters()
        optimizer = torch.optim.SGD(held, self.rate, momentum=self.momentum)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, self.gamma)
        return fit(
            model,
            self.source,
            self.loss,
            optimizer,
            epochs=epochs,
            scheduler=scheduler,
            checkpoint=path,
        )


X, Y = blobs()
PLAIN = Plain(Batches(X, Y, size=16))
FLIPPED = torch.cat([Y[:-1], (Y[-1:] + 1) % 3])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"rate": 0.5}, "optimizer.lr is 0.1 there, 0.5 here"),
        ({"momentum": 0.5}, "optimizer.momentum is 0.9 there, 0.5 here"),
        ({"source": Batches(X, FLIPPED, size=16)}, "data differs"),
        ({"source": Batches(X + 1e-6, Y, size=16)}, "data differs"),
        ({"source": Batches(X, Y, size=16, seed=1)}, "data differs"),
        ({"source": Batches(X, Y, size=15)}, "data differs"),
        (
            {"loss": CrossEntropy(Gaussian(0.5))},
            "loss is .*sigma=0.25.* there, .*sigma=0.5.* here",
        ),
        ({"loss": Scaled(1.0)}, r"loss is CrossEntropy\(.*\) there, 'Scaled\(scale=1.0\)' here"),
        ({"dropout": 0.4}, "model differs"),
        ({"frozen": True}, "model differs"),
        ({"head": True}, "optimizer.params differs"),
        (
            {"gamma": 0.1},
            r"scheduler is 'StepLR\(.*gamma=0.5.*\)' there, 'StepLR\(.*gamma=0.1.*\)' here",
        ),
    ],
)
def test_what_differs_from_the_run_of_a_checkpoint_is_named(tmp_path, other, named):
    PLAIN.fit(tmp_path / "run", 1)
    with pytest.raises(train.CheckpointError, match=rf"belongs to another run: ({named})$"):
        replace(PLAIN, **other).fit(tmp_path / "run", 2)
    assert len(PLAIN.fit(tmp_path / "run", 2)) == 2


def test_a_loss_with_attributes_is_told_by_them(tmp_path):
    for scale in (1.0, 1.0):
        replace(PLAIN, loss=Scaled(scale)).fit(tmp_path / "run", 1)
    with pytest.raises(train.CheckpointError, match="loss"):
        replace(PLAIN, loss=Scaled(2.0)).fit(tmp_path / "run", 2)


def test_a_run_goes_on_in_the_process_that_began_it(tmp_path):
    """The scheduler has moved the rate, and counted; that is the same run."""
    for make in (
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o, 0.1), torch.optim.lr_scheduler.StepLR(o, 2)],
            [1],
        ),
    ):
        model, path = network(), tmp_path / str(make.__code__.co_firstlineno)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        scheduler = make(optimizer)
        for epochs in (1, 2, 4):
            history = fit(
                model,
                PLAIN.source,
                CrossEntropy(),
                optimizer,
                epochs=epochs,
                scheduler=scheduler,
                checkpoint=path,
            )
        assert len(history) == 4


@pytest.mark.parametrize("other", [TensorDataset(X + 1, Y), TensorDataset(X, FLIPPED)])
def test_the_first_batch_of_a_data_set_tells_it_from_others(tmp_path, other):
    source = DatasetBatches(TensorDataset(X, Y), size=90)
    replace(PLAIN, source=source).fit(tmp_path / "run", 1)
    with pytest.raises(train.CheckpointError, match="data differs"):
        replace(PLAIN, source=DatasetBatches(other, size=90)).fit(tmp_path / "run", 2)
    replace(PLAIN, source=source).fit(tmp_path / "run", 2)


class Fresh(Augmented):
    """Items that draw where no seed reaches them."""

    def __getitem__(self, index):
        return self.x[index] + random.SystemRandom().random(), self.y[index]


def test_of_a_data_set_whose_items_never_repeat_the_labels_count(tmp_path):
    for epochs in (1, 2):
        source = DatasetBatches(Fresh(X, Y), size=90)
        replace(PLAIN, source=source).fit(tmp_path / "run", epochs)
    source = DatasetBatches(Fresh(X, FLIPPED), size=90)
    with pytest.raises(train.CheckpointError, match="data differs"):
        replace(PLAIN, source=source).fit(tmp_path / "run", 3)


def test_a_loss_without_settings_can_resume_too(tmp_path):
    def plain(model, x, y, generator):
        return functional.cross_entropy(model(x), y)

    for epochs in (1, 2):
        model = network()
        source, optimizer = Batches(*blobs()), torch.optim.SGD(model.parameters(), 0.1)
        history = fit(model, source, plain, optimizer, epochs=epochs, checkpoint=tmp_path / "run")
    assert len(history) == 2


def test_settings_of_the_loop(capsys):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="epochs must be a count of at least 1"):
        fit(model, Batches(*blobs()), CrossEntropy(), optimizer, epochs=0)
    for plain in (nn.CrossEntropyLoss(), lambda outputs, y: outputs.sum()):
        with pytest.raises(
            TypeError, match=r"loss must take \(model, x, y, generator\), as train.CrossEntropy"
        ):
            fit(model, Batches(*blobs()), plain, optimizer, epochs=1)
    with pytest.raises(
        TypeError, match=r"loss must have a method warmed_up\(epoch, epochs\) for a warmup"
    ):
        fit(model, Batches(*blobs()), CrossEntropy(), optimizer, epochs=1, warmup=2)
    fit(model, Batches(*blobs()), CrossEntropy(), optimizer, epochs=1)
    assert capsys.readouterr().err == ""
    fit(
        model,
        Batches(*blobs()),
        CrossEntropy(),
        optimizer,
        epochs=2,
        progress=True,
        metrics=lambda _: {"half": 0.5},
    )
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "half=0.5" in shown


# -- the recipes of the papers ---------------------------------------------------------------------


def accuracy(model, x, y):
    return (train.pseudo_labels(model, x) == y).double().mean().item()


def test_pre_training_then_fine_tuning_a_head():
    x, y = blobs()
    model = network()
    fit(model, Batches(x, y), CrossEntropy(), torch.optim.Adam(model.parameters(), 1e-2), epochs=5)
    body = copy.deepcopy(model[:4].state_dict())
    model[4] = nn.Linear(16, 3)  # a new head for a new task: the classes in another order
    model[1].eval()
    task = (y + 1) % 3
    before = accuracy(model, x, task)
    loss = Adversarial(
        attack=SmoothAdvPGD(epsilon=0.1, steps=2, samples=2), law=Gaussian(0.1), num_classes=3
    )
    optimizer = torch.optim.Adam(model[4].parameters(), 0.05)
    fit(model, Batches(x, task, size=32), loss, optimizer, epochs=20, warmup=5)
    assert accuracy(model, x, task) > max(before, 0.9)
    assert all(torch.equal(value, body[name]) for name, value in model[:4].state_dict().items())


@pytest.mark.parametrize("seed", range(4))
def test_self_training_learns_from_unlabelled_data(seed):
    """Six labels alone leave the noisy task half learned; with their pseudo-labels, 300 more inputs
    carry it."""
    (x, y), (u, truth), (test, labels) = (
        blobs(n, seed=10 * seed + i) for i, n in enumerate((6, 300, 300))
    )
    torch.manual_seed(seed)
    teacher = nn.Linear(4, 3)
    fit(
        teacher,
        Batches(x, y),
        CrossEntropy(),
        torch.optim.Adam(teacher.parameters(), 0.1),
        epochs=60,
    )
    guessed = train.pseudo_labels(teacher, u)
    assert (guessed == truth).double().mean() > 0.9
    students = []
    for data in ((x, y), (torch.cat([x, u]), torch.cat([y, guessed]))):
        torch.manual_seed(seed)
        student = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        fit(student, Batches(*data, size=32), CrossEntropy(LAW), optimizer, epochs=60)
        certificate = Smoother(student, LAW, 3).certify(test, n=300)
        students.append(
            ((certificate.label == labels) & (certificate.radius >= 0.1)).double().mean().item()
        )
    assert students[1] > students[0]
