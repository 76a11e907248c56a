"""The server: sampling, weights, coupling of runs, clip and noise, and what the ledger says of
it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rsfl import fed
from rsfl.bounds import FeatureThreat, RemovalThreat, deviation
from rsfl.fed.poison import Scale, SignFlip

DOUBLE = torch.float64


def problem(clients=6, trainer=None, dtype=DOUBLE, **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(90, 5, generator=generator, dtype=dtype)
    y = torch.randint(3, (90,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Linear(5, 3).to(dtype)
    parts = fed.partition.dirichlet(y.numpy(), clients, 2.0, min_samples=3, seed=1)
    trainer = trainer or fed.SGD(lr=0.1, batch_size=8, decay=0.1)
    return fed.Server(model, fed.clients(x, y, parts, trainer), **settings)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def same(one, two):
    return bool((vector(one.model) == vector(two.model)).all()) and one.ledger == two.ledger


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("rule", [fed.Mean(), fed.GeometricMedian(), fed.Krum(1)], ids=repr)
def test_the_order_of_the_clients_changes_nothing(stacked, rule):
    settings = {
        "fraction": 0.7,
        "clip": 2.0,
        "noise_std": 0.05,
        "stacked": stacked,
        "aggregate": rule,
    }
    server = problem(**settings)
    shuffled = fed.Server(
        server.model, server.clients[::-1][2:] + server.clients[::-1][:2], **settings
    )
    assert same(server.run(5, progress=False), shuffled.run(5, progress=False))


def test_a_run_mutates_nothing_and_repeats_itself():
    server = problem(noise_std=0.1)
    before = vector(server.model).clone()
    assert same(server.run(3, progress=False), server.run(3, progress=False))
    assert (vector(server.model) == before).all()
    assert not same(
        server.run(3, progress=False), problem(noise_std=0.1, seed=1).run(3, progress=False)
    )


def test_weights_are_the_registered_shares_of_the_participants():
    server = problem(fraction=0.5, keep=("updates",))
    result = server.run(6, progress=False)
    sizes = {client.id: client.size for client in server.clients}
    sent = vector(server.model)
    for entry in result.ledger.entries:
        members = entry.round.participants
        assert len(members) == 3
        total = sum(sizes[one.client] for one in members)
        assert [one.weight for one in members] == [sizes[one.client] / total for one in members]
        sent = sent + sum(one.weight * u for one, u in zip(members, entry.updates, strict=True))
        for one, update in zip(members, entry.updates, strict=True):
            mean = sum(w.weight * u for w, u in zip(members, entry.updates, strict=True))
            assert one.update_norm == pytest.approx(float(update.norm()), abs=1e-14)
            assert one.gap == pytest.approx(one.weight * float((update - mean).norm()), abs=1e-14)
    assert float((vector(result.model) - sent).abs().max()) < 1e-14


@pytest.mark.parametrize("claim", [1e9, -59, float("nan"), 0])
def test_what_a_client_claims_later_changes_nothing(claim):
    class Liar:
        def __init__(self, client):
            self.client, self.id, self.size, self.trainer = (
                client,
                client.id,
                client.size,
                client.trainer,
            )

        def fit(self, model, task):
            self.size = self.samples = self.num_examples = claim
            return self.client.fit(model, task)

    server = problem(stacked=False)
    lying = fed.Server(server.model, [Liar(client) for client in server.clients], stacked=False)
    honest, told = server.run(3, progress=False), lying.run(3, progress=False)
    assert (vector(honest.model) == vector(told.model)).all()
    registry = {client.id: 1 for client in server.clients}
    assert {
        p.weight
        for p in problem(sizes=registry).run(1, progress=False).ledger.rounds[0].participants
    } == {1 / 6}


def test_sampling_is_fair():
    server = problem(clients=10, fraction=0.3, trainer=fed.SGD(lr=1e-6, batch_size=None))
    rounds = server.run(300, progress=False).ledger.rounds
    times = np.zeros(10)
    for record in rounds:
        assert len(record.participants) == 3
        times[[one.client for one in record.participants]] += 1
    assert stats.chisquare(times).pvalue > 1e-3
    assert (
        len({tuple(one.client for one in record.participants) for record in rounds}) > 80
    )  # of 120 possible


def test_exclusion_replays_the_coupled_run():
    server = problem(fraction=0.7, noise_std=0.1, keep=("samples",))
    whole, without = server.run(8, progress=False), server.run(8, progress=False, exclude={2, 4})
    assert without.ledger.excluded == (2, 4)
    changed = False
    for a, b in zip(whole.ledger.rounds, without.ledger.rounds, strict=True):
        left = [one for one in a.participants if one.client not in (2, 4)]
        changed |= len(left) < len(a.participants)
        assert [(p.client, p.samples) for p in left] == [
            (p.client, p.samples) for p in b.participants
        ]
        assert a.noise_norm == b.noise_norm
        assert sum(p.weight for p in b.participants) == pytest.approx(1)
    assert changed
    assert without.ledger.fates(1)[2] == "excluded"
    # A registry without them is another experiment: it samples anew.
    smaller = [client for client in server.clients if client.id not in (2, 4)]
    other = fed.Server(server.model, smaller, fraction=0.7, noise_std=0.1).run(8, progress=False)
    assert [len(r.participants) for r in other.ledger.rounds] != [
        len(r.participants) for r in without.ledger.rounds
    ]


def test_an_attack_moves_nobody_elses_draws():
    server = problem(noise_std=0.1, keep=("samples", "updates"))
    clean = server.run(4, progress=False)
    attacked = server.run(
        4, progress=False, attacks={1: fed.Attack(rounds=[3], update=SignFlip(5.0))}
    )
    for a, b in zip(clean.ledger.rounds, attacked.ledger.rounds, strict=True):
        assert [p.samples for p in a.participants] == [p.samples for p in b.participants]
        assert a.noise_norm == b.noise_norm
    updates = [
        (a.updates, b.updates)
        for a, b in zip(clean.ledger.entries, attacked.ledger.entries, strict=True)
    ]
    assert (updates[1][0] == updates[1][1]).all()
    assert float((updates[2][1][1] + 5 * updates[2][0][1]).abs().max()) < 1e-14
    assert (updates[2][1][[0, 2, 3, 4, 5]] == updates[2][0][[0, 2, 3, 4, 5]]).all()
    assert float((updates[3][1] - updates[3][0]).abs().max()) > 1e-4


def test_clip_then_noise_and_none_of_it_in_the_last_round():
    rho = {1: 0.5, 2: 0.4, 3: 0.3}
    server = problem(clip=lambda t: rho[t], noise_std=0.05)
    seen = []
    result = server.run(
        3, progress=False, evaluate=lambda model: seen.append(float(vector(model).norm())) or {}
    )
    np.testing.assert_allclose(seen, [0.5, 0.4, 0.3], rtol=1e-14)
    assert float(vector(result.model).norm()) == seen[-1]
    records = result.ledger.rounds
    assert [record.clip for record in records] == [0.5, 0.4, 0.3]
    assert [record.noise_std for record in records] == [0.05, 0.05, 0.0]
    assert records[2].noise_norm == 0
    assert records[0].broadcast_norm == float(vector(server.model).norm())
    assert abs(records[1].broadcast_norm - 0.5) <= records[0].noise_norm
    assert records[1].broadcast_norm != pytest.approx(0.5, abs=1e-6)


def test_the_noise_has_its_standard_deviation():
    server = problem(trainer=fed.SGD(lr=1e-9, batch_size=None), noise_std=0.3)
    norms = [record.noise_norm for record in server.run(60, progress=False).ledger.rounds[:-1]]
    total = sum(norm**2 for norm in norms) / 0.3**2
    assert stats.chi2(18 * 59).cdf(total) == pytest.approx(0.5, abs=0.499)


def test_server_step_and_update_clip():
    full, half = problem(), problem(server_step=0.5)
    start = vector(full.model)
    moved, halved = (vector(s.run(1, progress=False).model) - start for s in (full, half))
    assert float((halved - moved / 2).abs().max()) < 1e-15
    clipped = problem(update_clip=0.01).run(2, progress=False).ledger
    assert {p.outcome for r in clipped.rounds for p in r.participants} == {"clipped"}
    assert all(p.update_norm == pytest.approx(0.01) for r in clipped.rounds for p in r.participants)
    assert clipped.rounds[0].update_clip == 0.01


def test_a_server_step_of_one_half_needs_no_clip_of_buffers():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(DOUBLE)
    server = problem()
    result = fed.Server(model, server.clients, clip=0.1, noise_std=0.1).run(2, progress=False)
    assert float(vector(result.model).norm()) == pytest.approx(0.1)
    assert (
        float(result.model[1].running_var.norm()) > 0.5
    )  # neither clipped nor perturbed with the parameters
    assert result.ledger.rounds[0].model == "Sequential"


def test_the_ledger_is_what_certificates_read():
    server = problem(clip=3.0, noise_std=0.01, seed=4)
    ledger = server.run(5, progress=False).ledger
    record, client = ledger.rounds[2], server.clients[1]
    one = record.participants[1]
    x, _ = client.samples()
    exact = float((x.square().sum(dim=1).max() + 1).sqrt())
    assert exact <= one.input_norm < exact * (1 + 1e-9)
    assert one.batch_sizes == (8,) * (client.size // 8) + (
        (client.size % 8,) if client.size % 8 else ()
    )
    assert (one.lr, one.decay) == (0.1, (0.1, 0.1))
    found = (
        record.model,
        one.loss,
        one.optimizer,
        one.momentum,
        record.dtype,
        record.aggregator,
    )
    assert found == ("linear", "softmax cross-entropy", "sgd", 0.0, "float64", "mean")
    assert (record.seed, record.weights_from, record.reject) == (4, "registration", "zero")
    threat = FeatureThreat(clients=[1], rounds=[2], norm=0.1, per_batch=2)
    assert 0 < deviation(ledger.rounds, threat).value < math.inf
    assert deviation(ledger.rounds, RemovalThreat(at_most=1)).value > 0


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"trainer": fed.SGD(momentum=0.9)}, "momentum", 0.9),
        ({"trainer": fed.SGD(loss=lambda m, x, y, g: m(x).square().mean())}, "loss", "custom"),
        ({"trainer": fed.SGD(mixture=0.5)}, "loss", "custom"),
        ({"trainer": type("Adam", (fed.SGD,), {})()}, "optimizer", "custom"),
        ({"aggregate": fed.GeometricMedian()}, "aggregator", "GeometricMedian"),
        ({"dtype": torch.float32}, "dtype", "float32"),
        ({"server_step": 1.5}, "server_step", 1.5),
        ({"reject": "renormalise"}, "reject", "renormalise"),
    ],
)
def test_the_ledger_tells_what_certificates_refuse(settings, field, value):
    record = problem(**settings).run(1, progress=False).ledger.rounds[0]
    told = record if hasattr(record, field) else record.participants[0]
    assert getattr(told, field) == value


def squared(module, args, output):
    return output**2


def test_a_model_is_called_linear_only_if_nothing_else_can_compute():
    class Squared(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    server, square, hooked = problem(), nn.Linear(5, 5), nn.Linear(5, 3)
    hooked.register_forward_hook(squared)
    kinds = {
        nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(5, 3))): "linear",
        nn.Sequential(square, square): "Sequential",
        hooked: "Linear",
        nn.Sequential(nn.Linear(5, 3), nn.ReLU()): "Sequential",
        nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)): "Sequential",
        Squared(5, 3): "Squared",
        type("linear", (Squared,), {})(5, 3): "custom linear",
        type("Bilinear", (Squared,), {})(5, 3): "Bilinear",
    }
    for model, kind in kinds.items():
        found = fed.Server(model.double(), server.clients).run(1, progress=False).ledger.rounds[0]
        assert found.model == kind
        assert math.isinf(found.participants[0].input_norm) == (kind != "linear")


def test_final_weights_of_the_geometric_median_are_reported():
    server = problem(aggregate=fed.GeometricMedian())
    result = server.run(2, progress=False, attacks={3: fed.Attack(update=Scale(1e4))})
    shares = result.ledger.entries[1].shares
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[3] == min(shares.values()) < 0.01
    assert result.ledger.rounds[1].participants[3].weight > 0.05


def test_metrics_are_kept_and_shown(capsys):
    result = problem().run(
        3, evaluate=lambda model: {"norm": float(vector(model).norm())}, progress=True
    )
    assert [set(m) for m in result.metrics] == [{"norm"}] * 3
    assert "norm=" in capsys.readouterr().err
    problem().run(1)
    assert capsys.readouterr().err == ""


def test_frozen_parameters_stay_where_they_are():
    server = problem()
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).to(DOUBLE)
    model[0].requires_grad_(False)
    result = fed.Server(model, server.clients, clip=0.5, noise_std=0.1).run(3, progress=False)
    assert (result.model[0].weight == model[0].weight).all()
    assert (result.model[1].weight != model[1].weight).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"server_step": 0.0}, "server_step"),
        ({"clip": -1.0}, "clip"),
        ({"noise_std": float("nan")}, "noise_std"),
        ({"update_clip": 0.0}, "update_clip"),
        ({"reject": "drop"}, "reject"),
        ({"keep": ("all",)}, "keep"),
        ({"min_clients": 0}, "min_clients"),
        ({"sizes": {0: 3}}, "sizes"),
        ({"timeout": 0.0}, "timeout"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        problem(**settings)


def test_bad_runs_are_named():
    server = problem()
    with pytest.raises(ValueError, match="clients"):
        fed.Server(server.model, server.clients + server.clients[:1])
    with pytest.raises(ValueError, match="clients"):
        fed.Server(server.model, [])
    with pytest.raises(ValueError, match=r"exclude.*\[99\]"):
        server.run(1, exclude={99})
    with pytest.raises(ValueError, match="attacks"):
        server.run(1, attacks={99: fed.Attack()})
    with pytest.raises(ValueError, match="rounds"):
        server.run(0)
    with pytest.raises(
        TypeError, match=r"attacks must be fed.Attack by client id, got Scale\(factor=2.0\)"
    ):
        server.run(1, attacks={0: Scale(2.0)})
    with pytest.raises(TypeError, match="update_clip must be a real number"):
        problem(update_clip="1")
    with pytest.raises(ValueError, match=r"update_clip must lie in \(0, inf\), got 0.0"):
        problem(update_clip=lambda t: 2.0 - t).run(3)
    with pytest.raises(TypeError, match=r"aggregate must return a fed\.Aggregate, got Tensor"):
        problem(aggregate=lambda models, weights: models[0]).run(1)
    for rounds in (1, [0], [[1]]):
        with pytest.raises((TypeError, ValueError), match="rounds"):
            fed.Attack(rounds=rounds)
    with pytest.raises(ValueError, match="model"):
        fed.Server(nn.Flatten(), server.clients)


def test_excluded_clients_may_come_from_anywhere():
    server = problem()
    ledgers = [server.run(2, exclude=exclude).ledger for exclude in ({2}, (i for i in [2]), [2, 2])]
    assert ledgers[0] == ledgers[1] == ledgers[2]
    assert ledgers[0].fates(1)[2] == "excluded"


def test_who_is_missing_is_told_once_a_round(caplog):
    def trains(model, x, y, task):
        if task.client < 5:
            raise RuntimeError("no disk")

    result = problem(trainer=trains).run(2)
    assert result.ledger.fates(2)[1] == "absent: raised RuntimeError: no disk"
    assert [record.getMessage() for record in caplog.records] == [
        f"round {index} went on without some clients: clients 0, 1, 2, 3, 4 raised RuntimeError: "
        f"no disk"
        for index in (1, 2)
    ]
    with pytest.raises(fed.RoundError, match=r"6 usable updates of 7 needed \(nobody failed\)"):
        problem(min_clients=7).run(1)
