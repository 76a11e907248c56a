"""Local training: centralised steps, stacks, mixtures, in the literal form of their definitions."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from rsfl import fed, train
from rsfl.deform import Rotation
from rsfl.fed import stacked, training
from rsfl.fed.poison import Backdoor
from rsfl.fed.trainer import Task
from rsfl.noise import Gaussian

DOUBLE = torch.float64


def data(n=120, d=6, classes=3, dtype=DOUBLE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)


def build(kind="linear", d=6, classes=3, dtype=DOUBLE, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {
            "linear": lambda: nn.Linear(d, classes),
            "mlp": lambda: nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, classes)),
            "conv": lambda: nn.Sequential(
                nn.Unflatten(1, (1, d)),
                nn.Conv1d(1, 2, 3),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(2 * (d - 2), classes),
            ),
        }
        return layers[kind]().to(dtype)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def distance(a, b):
    return float((vector(a) - vector(b)).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(("kind", "decay"), [("linear", 0.0), ("mlp", 0.01)])
def test_one_client_with_all_the_data_is_centralised_sgd_bit_for_bit(dtype, kind, decay):
    x, y = data(dtype=dtype)
    model = build(kind, dtype=dtype)
    client = fed.Client(0, x, y, fed.SGD(lr=0.3, batch_size=None, decay=decay))
    result = fed.Server(model, [client]).run(7, progress=False)
    central = deepcopy(model)
    optimizer = torch.optim.SGD(central.parameters(), lr=0.3, weight_decay=decay)
    for _ in range(7):
        optimizer.zero_grad()
        functional.cross_entropy(central(x), y).backward()
        optimizer.step()
    assert distance(result.model, central) == 0
    assert distance(result.model, model) > 0.01


def test_momentum_is_that_of_torch():
    x, y = data()
    model = build()
    fed_model = fed.personalise(
        model, [fed.Client(0, x, y, fed.SGD(lr=0.1, batch_size=None, steps=9, momentum=0.9))]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(9):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert distance(fed_model[0], model) == 0


def test_equal_clients_with_full_batches_make_the_centralised_step():
    x, y = data()
    members = fed.clients(x, y, fed.partition.equal(120, 8), fed.SGD(lr=0.3, batch_size=None))
    result = fed.Server(build(), members).run(5, progress=False)
    central = fed.Server(build(), [fed.Client(0, x, y, fed.SGD(lr=0.3, batch_size=None))]).run(
        5, progress=False
    )
    assert distance(result.model, central.model) < 1e-14


TRAINERS = {
    "plain": fed.SGD(lr=0.2, batch_size=7, epochs=2),
    "steps": fed.SGD(lr=0.2, batch_size=7, steps=5),
    "full": fed.SGD(lr=0.2, batch_size=None, epochs=3),
    "momentum and decay": fed.SGD(lr=0.1, batch_size=7, momentum=0.9, decay=0.1),
    "schedule": fed.SGD(lr=lambda t: 0.3 / t, batch_size=7),
    "noise": fed.SGD(lr=0.2, batch_size=7, loss=train.CrossEntropy(Gaussian(0.5))),
    "mixture": fed.SGD(lr=0.1, batch_size=7, mixture=0.4),
}


@pytest.mark.fast("stacked")
@pytest.mark.parametrize("kind", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_stacked_training_equals_one_by_one(monkeypatch, kind, trainer):
    x, y = data()
    parts = fed.partition.dirichlet(y.numpy(), 9, 0.7, min_samples=2, seed=1)
    assert len({len(part) for part in parts}) > 4
    attacks = {4: fed.Attack(data=Backdoor(torch.ones(6), 1, per_batch=2))}
    server = fed.Server(build(kind), fed.clients(x, y, parts, trainer), fraction=0.8)
    alone = fed.Server(build(kind), fed.clients(x, y, parts, trainer), fraction=0.8, stacked=False)
    reference = alone.run(3, progress=False, attacks=attacks)
    fit_alone = training.fit_alone

    def only_the_attacker(client, *rest):
        assert client.id == 4
        return fit_alone(client, *rest)

    monkeypatch.setattr(training, "fit_alone", only_the_attacker)
    result = server.run(3, progress=False, attacks=attacks)
    assert distance(result.model, reference.model) < 1e-12
    assert distance(result.model, server.model) > 1e-3
    for id_, model in reference.models.items():
        assert distance(result.models[id_], model) < 1e-12


def _nets(bias):
    """Networks of linear layers, and whether they flatten."""
    layer, relu = partial(nn.Linear, bias=bias), nn.ReLU
    return {
        "layer": (layer(6, 3), False),
        "flat": (nn.Sequential(nn.Flatten(), layer(6, 3)), True),
        "one": (nn.Sequential(nn.Flatten(), layer(6, 5), relu(), layer(5, 3)), True),
        "deep": (
            nn.Sequential(
                nn.Sequential(layer(6, 5), relu(inplace=True), relu(), nn.Identity()),
                layer(5, 4),
                nn.Sequential(nn.Linear(4, 4, bias=not bias), relu()),
                layer(4, 3),
            ),
            False,
        ),
    }


@pytest.mark.fast("by hand")
@pytest.mark.parametrize("kind", _nets(True))
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_by_hand_are_those_of_autograd(bias, kind):
    generator = torch.Generator().manual_seed(3)
    model, flat = _nets(bias)[kind]
    model = model.to(DOUBLE)
    x = torch.randn(5, 7, 2, 3, generator=generator, dtype=DOUBLE)
    x = 4 * (x if flat else x.flatten(2))
    y = torch.randint(3, (5, 7), generator=generator)
    shares = torch.rand(5, 7, generator=generator, dtype=DOUBLE)
    values = {
        name: torch.randn(5, *p.shape, generator=generator, dtype=DOUBLE)
        for name, p in model.named_parameters()
    }
    values[next(iter(values))][0] = 0  # a ReLU at 0
    by_hand = stacked._by_hand(model, train.CrossEntropy(), values)
    plain = stacked._by_autograd(model, train.CrossEntropy())
    before = {name: value.clone() for name, value in values.items()}, x.clone()
    ours = by_hand(values, x, y, shares)
    assert all(torch.equal(values[name], value) for name, value in before[0].items())
    assert torch.equal(x, before[1])
    for one, other in zip(ours, plain(values, x, y, shares), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match=r"y must lie in 0 \.\.\. 2, got 3"):
        by_hand(values, x, y + 3 * (y == 2) - 2 * (y == 2), shares)
    assert stacked._by_hand(model, lambda *_: None, values) is None


def _hooked():
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].register_forward_hook(lambda *_: None)
    return model


def _with_a_child():
    layer = nn.Linear(6, 4)
    layer.child = nn.Linear(4, 3)  # which it does not call
    return layer


def _with_a_function(layer, function):
    layer.forward = function
    return nn.Sequential(nn.Linear(6, 5), layer, nn.Linear(5, 3))


def _with_a_parameter():
    layer = nn.Linear(6, 3, bias=False)
    layer.scale = nn.Parameter(torch.zeros(3))  # which it does not use
    return layer


def _bias_first():
    layer = nn.Linear(6, 3)
    weight = layer.weight
    del layer.weight
    layer.weight = weight
    return layer


_SHARED = nn.Linear(6, 6)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(6, 3), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Linear(6, 3)),
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 5), nn.Flatten(0), nn.Linear(5, 3)),
        nn.Sequential(nn.Flatten(2), nn.Linear(6, 3)),
        nn.Sequential(_SHARED, nn.ReLU(), _SHARED, nn.Linear(6, 3)),
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(6, 3)),
        nn.Flatten(),
        _hooked(),
        _with_a_child(),
        _with_a_parameter(),
        _bias_first(),
        _with_a_function(nn.Identity(), torch.tanh),
        _with_a_function(nn.ReLU(), torch.sigmoid),
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.ReLU(inplace=True), nn.Linear(5, 3)),
    ],
)
def test_gradients_of_other_networks_are_not_written_down(model):
    values = {name: p.detach()[None] for name, p in model.named_parameters()}
    assert stacked._by_hand(model, train.CrossEntropy(), values) is None


def test_gradients_are_not_written_down_where_calls_are_rewritten():
    class Doubles(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            return 2 * found if function is functional.linear else found

    model = nn.Linear(6, 3)
    values = {name: p.detach()[None] for name, p in model.named_parameters()}
    assert stacked._by_hand(model, train.CrossEntropy(), values)
    with Doubles():
        assert stacked._by_hand(model, train.CrossEntropy(), values) is None


@pytest.mark.parametrize(
    ("shape", "labels", "features"), [((40,), (40,), 1), ((40, 4), (40, 1), 4)]
)
def test_data_that_a_client_cannot_train_on_alone_are_not_trained_on_together(
    shape, labels, features
):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    y = torch.randint(3, labels, generator=generator)
    model, trainer = nn.Linear(features, 3, bias=False), fed.SGD(lr=0.1, batch_size=1)
    for clients in (1, 4):
        members = fed.clients(x, y, fed.partition.equal(40, clients), trainer)
        with pytest.raises(fed.RoundError):
            fed.Server(model, members).run(1, progress=False)


@pytest.mark.fast("stacked")
def test_large_convolutions_are_not_stacked(monkeypatch):
    x, y = torch.rand(40, 1, 28, 28), torch.arange(40) % 10
    alone = []
    fit_alone = training.fit_alone
    monkeypatch.setattr(
        training, "fit_alone", lambda *args: alone.append(args[0].id) or fit_alone(*args)
    )
    for width, apart in ((1, []), (32, [0, 1])):
        model = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2),
            nn.Flatten(),
            nn.Linear(36 * width, 10),
        )
        assert training._convolved(model, x) == 196 * 9 * width + 36 * 9 * width**2 + 360 * width
        members = fed.clients(x, y, fed.partition.equal(40, 2), fed.SGD(lr=0.1, batch_size=20))
        alone.clear()
        fed.Server(model, members).run(1, progress=False)
        assert alone == apart


def test_what_an_attacker_draws_is_keyed_too():
    x, y = data()
    members = fed.clients(x, y, fed.partition.equal(len(x), 6), fed.SGD(lr=0.2, batch_size=7))
    attacks = {2: fed.Attack(data=lambda x, y: (x + torch.randn_like(x), y))}
    runs = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of others
            runs.append(fed.Server(build(), members).run(2, progress=False, attacks=attacks).model)
    assert distance(*runs) == 0


def test_an_attack_that_works_in_place_does_not_reach_the_data():
    def zero(x, y):
        return x.zero_(), y.zero_()

    x, y = data()
    before = x.clone(), y.clone()
    for trainer in (fed.SGD(), lambda model, x, y, task: None):
        members = fed.clients(x, y, [np.arange(len(x))], trainer)
        fed.Server(build(), members).run(1, progress=False, attacks={0: fed.Attack(data=zero)})
        assert x.equal(before[0])
        assert y.equal(before[1])


@pytest.mark.parametrize("stacked", [True, False])
def test_labels_are_looked_at_in_stacks_as_elsewhere(stacked):
    x, y = data()
    soft = functional.one_hot(y, 3) * 20.0
    trainer = fed.SGD(lr=0.2, batch_size=7)
    members = [
        fed.Client(0, x, y, trainer),
        fed.Client(1, x, y - 1, trainer),
        fed.Client(2, x, soft, trainer),
    ]
    for trio in (members, [members[0], members[1], fed.Client(2, x, y, trainer)]):
        fates = fed.Server(build(), trio, stacked=stacked).run(1, progress=False).ledger.fates(1)
        assert fates[0] == "used"
        assert fates[1] == "used"  # as the samples with a label that is one
    members = [fed.Client(0, x, soft, trainer), fed.Client(1, x, soft, trainer)]
    with pytest.raises(
        fed.RoundError, match="clients 0, 1 raised TypeError: y must be an int64 tensor"
    ):
        fed.Server(build(), members, stacked=stacked).run(1, progress=False)


def test_deformations_augment_stacks_and_single_clients_alike():
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.rand(60, 1, 6, 6, generator=generator),
        torch.randint(3, (60,), generator=generator),
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    trainer = fed.SGD(lr=0.2, batch_size=8, loss=train.CrossEntropy(Rotation(0.5)))
    members = fed.clients(x, y, fed.partition.equal(60, 4), trainer)
    together, alone = (
        fed.personalise(model, members, rounds=2, stacked=flag) for flag in (True, False)
    )
    plain = fed.personalise(model, members, rounds=2, trainer=fed.SGD(lr=0.2, batch_size=8))
    for id_ in together:
        assert distance(together[id_], alone[id_]) < 1e-6
        assert distance(together[id_], plain[id_]) > 1e-3


def test_filling_up_short_batches_does_not_reach_models_whose_samples_interact():
    x, y = data()
    model = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)
    ).to(DOUBLE)
    parts = fed.partition.dirichlet(y.numpy(), 9, 0.7, min_samples=12, seed=1)
    parts += [part[:10] for part in parts[:4]]
    members = fed.clients(x, y, parts, fed.SGD(lr=0.2, batch_size=8, steps=2))
    results = [
        fed.Server(model, members, stacked=flag).run(3, progress=False).model
        for flag in (True, False)
    ]
    assert distance(*results) < 1e-12
    assert distance(results[0], model) > 1e-3


def test_dropout_is_keyed_by_client_and_round():
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).to(DOUBLE)
    members = fed.clients(x, y, fed.partition.equal(120, 4), fed.SGD(batch_size=10))
    first, second, other = (
        fed.Server(model, members, seed=s).run(2, progress=False).model for s in (5, 5, 6)
    )
    assert distance(first, second) == 0
    assert distance(first, other) > 0


def test_models_that_cannot_be_stacked_train_one_by_one():
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)).to(
        DOUBLE
    )
    members = fed.clients(x, y, fed.partition.equal(120, 4), fed.SGD(batch_size=10))
    before = torch.random.get_rng_state()
    first, second = (
        fed.Server(model, members, seed=5).run(2, progress=False).model for _ in range(2)
    )
    assert (torch.random.get_rng_state() == before).all()
    assert all(
        (a == b).all()
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert float((first[1].running_mean - model[1].running_mean).abs().max()) > 1e-3
    assert first[1].num_batches_tracked == 0
    other = fed.Server(model, members, seed=6).run(2, progress=False).model
    assert distance(first, other) > 0


def test_batches_are_a_shuffle_and_say_their_sizes():
    for trainer in (
        fed.SGD(batch_size=30, steps=20),
        fed.SGD(batch_size=30, epochs=3),
        fed.SGD(batch_size=None),
    ):
        batches = trainer.batches(500, Task(3, 7, 0))
        assert tuple(map(len, batches)) == trainer.batch_sizes(500)
        epoch = np.concatenate(batches)[:500]
        assert sorted(epoch) == list(range(500))
    first = fed.SGD(batch_size=30).batches(500, Task(3, 7, 0))
    for other in (Task(4, 7, 0), Task(3, 8, 0), Task(3, 7, 1)):
        assert any(
            (a != b).any()
            for a, b in zip(first, fed.SGD(batch_size=30).batches(500, other), strict=True)
        )


def test_a_round_of_batches_uses_every_sample_alike():
    times = np.zeros(50)
    for t in range(400):
        for batch in fed.SGD(batch_size=7, steps=2).batches(50, Task(t, 0, 0)):
            times[batch] += 1
    assert times.sum() == 400 * 14
    assert abs(times - 112).max() < 5 * 112**0.5


def test_decay_by_name_leaves_the_others_alone():
    x, y = data()
    model = build()
    zero = fed.SGD(
        lr=0.1, batch_size=None, decay={"weight": 0.5}, loss=lambda m, x, y, g: 0 * m(x).sum()
    )
    trained = fed.personalise(model, [fed.Client(0, x, y, zero)])[0]
    assert (trained.bias == model.bias).all()
    np.testing.assert_allclose(trained.weight.detach(), 0.95 * model.weight.detach(), rtol=1e-14)
    with pytest.raises(RuntimeError, match="decay must name trained parameters, got \\['wait'\\]"):
        fed.personalise(model, [fed.Client(0, x, y, fed.SGD(decay={"wait": 0.5}))])


def test_a_custom_loss_gets_the_model_the_batch_and_a_keyed_generator():
    x, y = data()

    def noisy(model, x, y, generator):
        return functional.cross_entropy(
            model(x + torch.randn(x.shape, generator=generator, dtype=x.dtype)), y
        )

    members = fed.clients(x, y, fed.partition.equal(120, 4), fed.SGD(batch_size=10, loss=noisy))
    one, two = (fed.Server(build(), members, seed=2).run(2, progress=False).model for _ in range(2))
    assert distance(one, two) == 0
    assert distance(one, fed.Server(build(), members, seed=3).run(2, progress=False).model) > 0


def test_any_callable_trains():
    x, y = data()
    seen = []

    def adam(model, x, y, task):
        seen.append((len(x), task.client, task.round))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    members = fed.clients(x, y, fed.partition.equal(120, 3), adam)
    result = fed.Server(build(), members).run(4, progress=False)
    assert fed.accuracy(result.model, x, y) > fed.accuracy(build(), x, y)
    assert seen[:3] == [(40, 0, 1), (40, 1, 1), (40, 2, 1)]
    assert result.ledger.rounds[0].participants[0].optimizer == "custom"
    assert result.ledger.rounds[0].participants[0].loss == "custom"


# The mixture of Alfarra et al., Eq. 5.


def mixture_by_hand(model, members, lam, rounds, trainer):
    """The definition, literally: w_i <- w_i - lr (lam grad + 2 (1 - lam) (w_i - mean)), then the
    mean anew."""
    models = {client.id: deepcopy(model) for client in members}
    mean = [p.detach().clone() for p in model.parameters()]
    for t in range(1, rounds + 1):
        for client in members:
            own, (x, y) = models[client.id], client.samples()
            for batch in trainer.batches(client.size, Task(t, client.id, 0)):
                loss = functional.cross_entropy(own(x[batch]), y[batch])
                gradients = torch.autograd.grad(loss, list(own.parameters()))
                with torch.no_grad():
                    for w, g, m in zip(own.parameters(), gradients, mean, strict=True):
                        w.copy_(w - trainer.lr * (lam * g + 2 * (1 - lam) * (w - m)))
        stacked = zip(*(m.parameters() for m in models.values()), strict=True)
        mean = [torch.stack([p.detach() for p in ps]).mean(dim=0) for ps in stacked]
    return models, mean


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_the_mixture_is_eq_5_alternating_with_averages(lam):
    x, y = data()
    trainer = fed.SGD(lr=0.1, batch_size=8, mixture=lam)
    members = fed.clients(x, y, fed.partition.equal(120, 4), trainer)
    result = fed.Server(build(), members).run(4, progress=False)
    models, mean = mixture_by_hand(build(), members, lam, 4, trainer)
    for id_, model in models.items():
        assert distance(result.models[id_], model) < 1e-13
    assert (
        float((vector(result.model) - torch.cat([m.reshape(-1) for m in mean])).abs().max()) < 1e-13
    )


def test_lambda_one_is_local_training_and_lambda_zero_stays_together():
    x, y = data()
    parts = fed.partition.equal(120, 4)
    mixed = fed.Server(build(), fed.clients(x, y, parts, fed.SGD(batch_size=8, mixture=1.0))).run(
        5, progress=False
    )
    local = fed.personalise(build(), fed.clients(x, y, parts, fed.SGD(batch_size=8)), rounds=5)
    assert all(distance(mixed.models[id_], local[id_]) == 0 for id_ in local)
    assert distance(local[0], local[1]) > 0.01
    still = fed.Server(build(), fed.clients(x, y, parts, fed.SGD(batch_size=8, mixture=0.0))).run(
        5, progress=False
    )
    assert all(distance(still.models[id_], build()) == 0 for id_ in still.models)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"steps": 1.5}, "steps"),
        ({"momentum": 1.0}, "momentum"),
        ({"decay": -0.1}, "decay"),
        ({"mixture": 1.1}, "mixture"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        fed.SGD(**settings)


def test_bad_clients_are_named():
    x, y = data()
    with pytest.raises(ValueError, match="indices"):
        fed.Client(0, x, y, indices=[120])
    with pytest.raises(ValueError, match="y must be one label a sample"):
        fed.Client(0, x, y[:3])
    with pytest.raises(TypeError, match="trainer"):
        fed.Client(0, x, y, 3)
