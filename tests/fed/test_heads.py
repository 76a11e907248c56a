"""A linear head behind frozen layers inside one module: what counts as one, and that its bound and
its margins are those of a linear model on features that were computed before."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rsfl import bounds, fed
from rsfl._heads import linear_head
from rsfl.bounds import ClientThreat, ConditionError, FeatureThreat, RemovalThreat, SampleThreat
from rsfl.fed.survey import survey
from rsfl.smooth import ExactCertificate, ParameterSmoother, exact_votes, margins
from rsfl.verify import verify

DOUBLE = torch.float64
TEST = torch.rand(150, 1, 6, 6, generator=torch.Generator().manual_seed(7), dtype=DOUBLE)
TRAINER = fed.SGD(lr=0.4, batch_size=5, decay=0.05)


def extractor(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        convolution, dense = nn.Conv2d(1, 3, 3), nn.Linear(12, 5)
    layers = (convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), dense, nn.Tanh())
    return nn.Sequential(*layers).double().requires_grad_(False)


def headed(seed=0, layers=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        head = nn.Linear(5, 3).double()
    return nn.Sequential(*(extractor(seed) if layers is None else layers), head)


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (110,), generator=generator)
    x = 0.4 * torch.rand(110, 1, 6, 6, generator=generator, dtype=DOUBLE)
    x[torch.arange(110), 0, 2 * y] += 1.0
    return x, y


def server(seed=0, model=None, x=None, **settings):
    pictures, y = images(seed)
    x = pictures if x is None else x
    members = fed.clients(x, y, fed.partition.equal(110, 10, seed=seed), TRAINER)
    return fed.Server(model or headed(seed), members, seed=seed, **settings)


def distance(one, other):
    return float(
        sum(
            (p - q).detach().square().sum()
            for p, q in zip(one.parameters(), other.parameters(), strict=True)
        )
        ** 0.5
    )


def test_a_run_is_that_of_a_linear_model_on_features_computed_before():
    run = server(noise_std=0.01, clip=3.0).run(3, progress=False)
    layers, (x, _) = extractor(), images()
    plain = server(model=deepcopy(headed()[-1]), x=layers(x.clone()), noise_std=0.01, clip=3.0)
    alone = plain.run(3, progress=False)
    assert distance(run.model[-1], alone.model) < 1e-13
    for one, two in zip(run.ledger.rounds, alone.ledger.rounds, strict=True):
        assert (one.model, two.model) == ("linear head", "linear")
        assert one.features_hash
        assert not two.features_hash
        norms = [[p.input_norm for p in record.participants] for record in (one, two)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
        assert max(norms[0]) < 2.5  # tanh, not the pictures, whose norms are above
    threat = RemovalThreat(at_most=1)
    there = bounds.deviation(alone.ledger.rounds, threat).value
    assert bounds.deviation(run.ledger.rounds, threat).value == pytest.approx(there, rel=1e-9)


def test_stacked_training_is_that_of_one_client_after_another():
    together, alone = (server(stacked=stacked).run(2, progress=False) for stacked in (True, False))
    assert distance(together.model, alone.model) < 1e-13


def test_margins_are_those_of_the_head_on_features_computed_before():
    model, before = headed(), TEST.clone()
    z = extractor()(TEST.clone())
    assert torch.equal(TEST, before)
    for ask in (margins, lambda model, x: exact_votes(model, x, 0.1)):
        found, expected = ask(model, TEST), ask(model[-1], z)
        assert torch.equal(TEST, before)  # the layers work in place, on copies
        assert torch.equal(found.label, expected.label)
        assert torch.equal(found.radius, expected.radius)
        assert torch.equal(found.label, model(TEST.clone()).argmax(1))
        assert found.law.features == linear_head(model).fingerprint != expected.law.features


@pytest.mark.parametrize("kind", ["removal", "client", "sample"])
def test_coupled_runs_are_never_farther_apart_than_the_bound(kind):
    certified = 0
    largest = 0.0
    for seed in range(5):
        who = seed % 10
        calm = server(seed, noise_std=0.01, update_clip=2.0)
        clean = calm.run(3, progress=False)
        if kind == "removal":
            run, other = clean, calm.run(3, exclude=[who], progress=False)
            threat = RemovalThreat(clients=[who])
        else:
            flip = fed.Attack(data=lambda x, y: (5 * x.flip(3), (y + 1) % 3))
            loud = fed.Attack(update=fed.poison.Scale(-50.0))
            other = clean
            run = calm.run(3, attacks={who: flip if kind == "sample" else loud}, progress=False)
            # Five features between -1 and 1: nothing that is shown is longer.
            threat = SampleThreat(clients=[who], input_norm=6**0.5, space="features")
            threat = threat if kind == "sample" else ClientThreat(clients=[who])
        found = fed.certify(run.model, TEST, run.ledger, threat)
        apart = distance(run.model, other.model)
        assert 0 < apart <= found.deviation
        largest = max(largest, apart / found.deviation)
        made = ~found.abstained
        assert torch.equal(found.label[made], other.model(TEST.clone()).argmax(1)[made])
        certified += int(made.sum())
        assert {one.id: one.basis for one in found.assumptions}["frozen-features"] == "checked"
    assert largest > 0.05
    assert certified > (100 if kind == "removal" else -1)


def with_layer(layer, place=5):
    model = headed()
    model.insert(place, layer.double())
    for module in list(model)[:-1]:
        module.requires_grad_(False)
    return model


def changed(change):
    model = headed()
    found = change(model)
    return found if isinstance(found, nn.Module) else model


class Own(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


class Slope(float):
    pass


def memory_of_the_head(model):
    shared = nn.Linear(5, 5).double().requires_grad_(False)
    model.insert(6, shared)
    model[-1].weight = nn.Parameter(torch.zeros(25, dtype=DOUBLE).view(5, 5)[:3])
    shared.weight = nn.Parameter(
        model[-1].weight.data.as_strided((5, 5), (5, 1)), requires_grad=False
    )


NOT_HEADS = {
    "a parameter that is trained": lambda: changed(lambda m: m[0].bias.requires_grad_()),
    "a frozen parameter of the head": lambda: changed(lambda m: m[-1].bias.requires_grad_(False)),
    "batch statistics": lambda: with_layer(nn.BatchNorm1d(5)),
    "batch statistics in evaluation mode": lambda: with_layer(nn.BatchNorm1d(5).eval()),
    "dropout": lambda: with_layer(nn.Dropout(0.1)),
    "dropout in evaluation mode": lambda: with_layer(nn.Dropout(0.1).eval()),
    "random slopes": lambda: with_layer(nn.RReLU()),
    "a class of its own": lambda: with_layer(Own()),
    "a hook": lambda: changed(lambda m: m[1].register_forward_hook(lambda *a: 2 * a[2])),
    "a hook of the head": lambda: changed(
        lambda m: m[-1].register_forward_pre_hook(lambda m, a: (2 * a[0],))
    ),
    "a forward of its own": lambda: changed(lambda m: setattr(m[1], "forward", torch.abs)),
    "a number of another class": lambda: with_layer(nn.LeakyReLU(Slope(0.1))),
    "samples that become one": lambda: with_layer(nn.Flatten(0), 3),
    "float32 layers": lambda: nn.Sequential(extractor().float(), headed()[-1]),
    "the head's memory": lambda: changed(memory_of_the_head),
    "a head that stands in the layers too": lambda: changed(
        lambda m: nn.Sequential(nn.Linear(36, 5).double().requires_grad_(False), *[m[-1]] * 2)
    ),
    "something after the head": lambda: changed(lambda m: m.append(nn.ReLU())),
}


@pytest.mark.parametrize("name", NOT_HEADS)
def test_what_is_no_linear_head_is_refused(name):
    model = NOT_HEADS[name]()
    assert linear_head(model) is None
    with pytest.raises(ValueError, match="model must be one affine map"):
        margins(model, TEST)


@pytest.mark.parametrize(
    "name", ["a parameter that is trained", "batch statistics", "dropout", "a hook"]
)
def test_a_run_of_what_is_no_linear_head_is_refused_with_the_way_out(name):
    x, y = images()
    members = fed.clients(x, y, fed.partition.equal(110, 10), replace(TRAINER, batch_size=None))
    run = fed.Server(NOT_HEADS[name](), members).run(2, progress=False)
    with pytest.raises(ConditionError, match=r"'linear-model' fails .*; freeze all layers before"):
        fed.certify(run.model, TEST, run.ledger, RemovalThreat(at_most=1))


def test_layers_that_were_changed_or_are_others_are_refused():
    run = server().run(2, progress=False)
    threat = RemovalThreat(at_most=1)
    moved, others = deepcopy(run.model), nn.Sequential(*extractor(5), deepcopy(run.model[-1]))
    with torch.no_grad():
        moved[0].weight[0, 0, 0, 0] += 1e-9
    pooled = deepcopy(run.model)
    pooled[5] = nn.Sigmoid()
    for other in (moved, others, pooled):
        for ask in (
            lambda other=other: fed.certify(other, TEST, run.ledger, threat),
            lambda other=other: fed.withstood(margins(other, TEST), run.ledger, threat),
            lambda other=other: fed.LinearJudge(other, run.ledger, [threat]),
        ):
            with pytest.raises(ValueError, match="must have the frozen layers that the ledger's"):
                ask()
    # The head alone, on whatever features, is not the model of this ledger either.
    with pytest.raises(ValueError, match=r"must be the one|must have the frozen layers"):
        fed.certify(run.model[-1], torch.rand(4, 5, dtype=DOUBLE), run.ledger, threat)
    rounds = list(run.ledger.rounds)
    rounds[0] = replace(rounds[0], features_hash="ab")
    with pytest.raises(ValueError, match="round 1 trained on other frozen layers"):
        fed.certify(run.model, TEST, rounds, threat)
    bare = [replace(one, features_hash="") for one in run.ledger.rounds]
    with pytest.raises(ConditionError, match="linear-model"):
        fed.certify(run.model, TEST, bare, threat)


def test_layers_that_change_during_a_round_have_no_name():
    calm = server()

    def rule(updates, weights):
        with torch.no_grad():
            calm.model[0].weight += 0.1
        return fed.Mean()(updates, weights)

    record = replace(calm, aggregate=rule).run(1, progress=False).ledger.rounds[0]
    assert (record.model, record.features_hash) == ("custom linear head", "")


def test_threats_by_data_have_to_speak_of_features():
    run = server().run(2, progress=False)
    for threat in (
        FeatureThreat(clients=[1], norm=0.1),
        FeatureThreat(clients=[1], norm=0.0),
        SampleThreat(at_most=1, input_norm=2.0),
    ):
        with pytest.raises(ConditionError, match=r"'features-named' fails .*space='features'"):
            fed.certify(run.model, TEST, run.ledger, threat)
        with pytest.raises(ConditionError, match="features-named"):
            bounds.most_attackers(run.ledger.rounds, replace(threat, clients=(), at_most=1), 1.0)
        named = fed.certify(run.model, TEST, run.ledger, replace(threat, space="features"))
        assert "features-named" in {one.id for one in named.assumptions}
    with pytest.raises(ConditionError, match="features-named"):
        bounds.largest_norm(run.ledger.rounds, FeatureThreat(clients=[1], norm=0.1), 1.0)
    assert repr(replace(threat, space="features")).endswith("space='features')")
    with pytest.raises(ValueError, match="space must be one of"):
        FeatureThreat(clients=[1], norm=0.1, space="pixels")


def test_clients_elsewhere_and_inputs_that_the_layers_cannot_take_have_no_bound():
    calm = server()
    x, y = images()
    odd = fed.Client(20, x[:5].float(), y[:5], TRAINER)
    flat = fed.Client(21, x[:5, 0], y[:5], TRAINER)  # a convolution would take samples for channels
    record = replace(calm, clients=[*calm.clients, odd, flat]).run(1, progress=False).ledger
    norms = {one.client: one.input_norm for one in record.rounds[0].participants}
    assert norms[20] == norms[21] == float("inf")
    assert max(norms[i] for i in range(10)) < 2.5
    far = fed.Remote(30, 5, TRAINER, input_norm=1.5)
    assert survey([far], calm.model)[30].input_norm == float("inf")
    assert survey([far], calm.model[-1])[30].input_norm == 1.5


def test_features_that_are_too_long_or_not_finite_count_as_zero():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).double().requires_grad_(False)
    layers[1].weight.fill_(0.1)
    x, _ = images()
    x[3], x[40] = torch.nan, 1e6
    run = server(model=headed(layers=layers), x=x, max_input_norm=10.0).run(2, progress=False)
    assert 1 <= len(run.ledger.unusable) <= 2
    assert max(one.input_norm for one in run.ledger.rounds[0].participants) <= 10.0
    assert {one.outcome for one in run.ledger.rounds[0].participants} == {"used"}
    with pytest.raises(ValueError, match="finite"):
        margins(run.model, torch.full((1, 1, 6, 6), 1.7e308, dtype=DOUBLE))


def test_what_is_saved_can_be_verified(tmp_path):
    run = server().run(2, progress=False)
    paths = tmp_path / "c.json", tmp_path / "ledger.json"
    run.ledger.save(paths[1])
    certificate = fed.certify(run.model, TEST[:5], run.ledger, RemovalThreat(at_most=1))
    certificate.save(paths[0])
    assert verify(*paths).holds
    # Who knows nothing of the model has not checked its layers.
    fewer = tuple(one for one in certificate.assumptions if one.id != "known-model")
    replace(certificate, assumptions=fewer).save(paths[0])
    assert verify(*paths).holds is False


def test_what_is_saved_knows_the_layers(tmp_path):
    run = server().run(2, progress=False)
    threat = RemovalThreat(at_most=1)
    run.ledger.save(tmp_path / "ledger.json")
    ledger = fed.Ledger.load(tmp_path / "ledger.json")
    assert ledger.rounds == run.ledger.rounds
    base = margins(run.model, TEST)
    base.save(tmp_path / "margins.json")
    again = ExactCertificate.load(tmp_path / "margins.json")
    assert again.law == base.law
    fed.withstood(again, ledger, threat)
    forgotten = replace(again, law=replace(again.law, features=""))
    with pytest.raises(ValueError, match="must have the frozen layers"):
        fed.withstood(forgotten, ledger, threat)
    names = [f"{len(run.model) - 1}.weight", f"{len(run.model) - 1}.bias"]
    votes = ParameterSmoother(run.model, 0.01, 3, parameters=names).certify(TEST[:5], n=200)
    for model, basis in ((None, "trusted"), (run.model, "checked")):
        found = fed.withstood(votes, ledger, threat, model)
        assert {one.id: one.basis for one in found.assumptions}["frozen-features"] == basis
