"""From ledger and threat to certified predictions, end to end: train, attack, certify, compare with
the other run."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from ledgers import threat as threat_of
from torch import nn

from rsfl import bounds, fed
from rsfl.bounds import ClientThreat, ConditionError, FeatureThreat, RemovalThreat, SampleThreat
from rsfl.fed.poison import Attack, Backdoor, Noise, Scale
from rsfl.smooth import ABSTAIN, GaussianSmoother, ParameterSmoother, exact_votes, margins

DOUBLE = torch.float64
TEST = torch.randn(400, 5, generator=torch.Generator().manual_seed(99), dtype=DOUBLE)


def problem(seed=0, clients=8, dtype=DOUBLE, trainer=None, model=None, **settings):
    """A small separable task for a linear model: three classes in five dimensions, inputs of norm
    up to about 1."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (96,), generator=generator)
    x = (
        0.3 * torch.eye(5, dtype=DOUBLE)[y]
        + 0.2 * torch.randn(96, 5, generator=generator, dtype=DOUBLE)
    ).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model or nn.Linear(5, 3).to(dtype)
    trainer = trainer or fed.SGD(lr=0.5, batch_size=4, decay=0.1)
    parts = fed.partition.equal(len(x), clients, seed=seed)
    options = {"noise_std": 0.01, "keep": ("samples",), "seed": seed} | settings
    return fed.Server(model, fed.clients(x, y, parts, trainer), **options)


def agreed(certificate, other):
    """Whether the other model agrees wherever the certificate speaks."""
    label = other(TEST).argmax(dim=1)
    made = ~certificate.abstained
    return bool((certificate.label[made] == label[made]).all())


def test_backdoored_runs_never_differ_from_the_clean_run_where_it_is_certified():
    """300 attacked runs of several kinds inside their threats; the model that is certified is the
    attacked one."""
    certified = differing = 0
    for seed in range(75):
        server = problem(seed, clients=12, fraction=0.75, update_clip=6.0)
        clean = server.run(3, progress=False).model
        pattern = torch.zeros(5, dtype=DOUBLE)
        pattern[seed % 5] = 0.2
        last, first = {seed % 12: [3]}, {seed % 12: [1]}
        cases = [
            (
                last,
                Backdoor(pattern, 0, 1),
                Scale(1.5),
                {"norm": 0.2, "per_batch": 1, "scale": 1.5},
            ),
            (first, Backdoor(pattern, 0, 2), None, {"norm": 0.2, "per_batch": 2}),
            (first, Backdoor(3 * pattern, 1, 1), None, {"input_norm": 3.0, "per_batch": 1}),
            (first, None, Noise(1.0), {}),
        ]
        for who, data, update, power in cases:
            ((client, rounds),) = who.items()
            result = server.run(3, attacks={client: Attack(rounds, data, update)}, progress=False)
            level = "feature" if "norm" in power else "sample" if power else "client"
            certificate = fed.certify(
                result.model,
                TEST,
                result.ledger,
                threat_of(level, clients=[client], rounds=rounds, **power),
            )
            certified += int((~certificate.abstained).sum())
            differing += int((result.model(TEST).argmax(1) != clean(TEST).argmax(1)).sum())
            assert agreed(certificate, clean), (seed, level)
    assert certified > 10_000  # of 120,000 predictions: the bound says something
    assert differing > 100  # and the attacks do something


def test_removals_never_differ_from_the_run_without_the_clients_where_it_is_certified():
    certified = {1: 0, 2: 0}
    for seed in range(100):
        server = problem(seed, clients=20, fraction=0.8)
        attack = (
            Attack(None, None, Scale(-2.0))
            if seed % 2
            else Attack(None, Backdoor(torch.ones(5), 2, None), None)
        )
        result = server.run(3, attacks={3: attack}, progress=False)
        for gone in ([3], [seed % 20], sorted({3, seed % 20})):
            without = server.run(
                3, exclude=gone, attacks={} if 3 in gone else {3: attack}, progress=False
            ).model
            named = fed.certify(result.model, TEST, result.ledger, RemovalThreat(clients=gone))
            anyone = fed.certify(
                result.model, TEST, result.ledger, RemovalThreat(at_most=len(gone))
            )
            certified[len(gone)] += int((~named.abstained).sum())
            assert named.deviation <= anyone.deviation
            # Whoever is left must be honest in both runs; with 3 left in, its answers may depend on
            # who is gone.
            if 3 in gone:
                assert agreed(named, without)
                assert agreed(anyone, without)
    assert certified[1] > 10_000
    assert certified[2] > 1_000


def trained(**settings):
    server = problem(**settings)
    return server, server.run(3, progress=False)


THREAT = FeatureThreat(clients=[0], rounds=[2], norm=0.1, per_batch=1)


def test_votes_of_a_linear_model_are_exact_and_never_beyond_its_margin():
    _, result = trained()
    margin = fed.certify(result.model, TEST, result.ledger, THREAT)
    votes = fed.withstood(exact_votes(result.model, TEST, 0.1), result.ledger, THREAT)
    smoother = ParameterSmoother(result.model, 0.1, 3)
    base = smoother.certify(TEST, n=1000, runner_up="bounded")
    sampled = fed.withstood(base, result.ledger, THREAT)
    assert (margin.alpha, votes.alpha, sampled.alpha) == (0.0, 0.0, 0.001)
    assert bool((votes.reach <= margin.reach).all())
    assert bool((sampled.reach <= votes.reach + 1e-12).double().mean() > 0.99)
    assert float(votes.reach.sum()) > float(sampled.reach.sum())
    assert (
        margin.deviation == votes.deviation == bounds.deviation(result.ledger.rounds, THREAT).value
    )
    exact = bounds.margin_radius(
        result.model(TEST).detach().numpy(), np.sqrt((TEST.numpy() ** 2).sum(1) + 1)
    )
    assert bool((margin.reach.numpy() <= exact).all())
    np.testing.assert_allclose(margin.reach.numpy(), exact, rtol=1e-9, atol=1e-12)


def test_the_certificate_abstains_where_the_deviation_reaches_the_prediction():
    _, result = trained()
    certificate = fed.certify(result.model, TEST, result.ledger, THREAT)
    held = certificate.reach > certificate.deviation
    assert 0 < int(held.sum()) < len(TEST)
    assert torch.equal(certificate.abstained, ~held)
    assert torch.equal(certificate.label[held], result.model(TEST).argmax(1)[held])
    assert torch.equal(certificate.radius, torch.where(held, certificate.reach, 0.0))
    assert (certificate.space, certificate.norm) == ("parameters", "l2")
    names = {a.id for a in certificate.assumptions}
    assert {"plain-sgd", "step-size", "float64", "known-model", "coupled-runs"} <= names
    assert certificate[:3].threat == THREAT
    parts = type(certificate).cat([certificate[:5], certificate[5:]])
    assert torch.equal(parts.reach, certificate.reach)
    other = fed.certify(result.model, TEST, result.ledger, replace(THREAT, norm=0.2))
    with pytest.raises(ValueError, match="parts must agree in threat"):
        type(certificate).cat([certificate, other])


def test_inverse_questions_read_the_reach():
    _, result = trained()
    certificate = fed.certify(result.model, TEST, result.ledger, THREAT)
    norms = bounds.largest_norm(result.ledger.rounds, THREAT, certificate.reach.numpy())
    assert bool((norms[~certificate.abstained.numpy()] >= 0.1).all())
    assert bool((norms[certificate.abstained.numpy()] <= 0.1).all())


def broken(name):
    """A run with one condition broken, and the condition's name."""
    sgd = {"lr": 0.5, "batch_size": 4, "decay": 0.1}
    return {
        "momentum": ("plain-sgd", {"trainer": fed.SGD(**sgd, momentum=0.9)}),
        "undecayed bias": (
            "one-decay",
            {"trainer": fed.SGD(**sgd | {"decay": {"weight": 0.1, "bias": 0.0}})},
        ),
        "server-step": ("server-step", {"server_step": 1.5}),
        "geometric median": ("plain-averaging", {"aggregate": fed.GeometricMedian()}),
        "batch norm": (
            "linear-model",
            {"model": nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()},
        ),
        "step-size": ("step-size", {"trainer": fed.SGD(**sgd | {"lr": 3.0})}),
        "renormalised": ("zero-for-rejected", {"reject": "renormalise"}),
        "custom loss": (
            "plain-loss",
            {"trainer": fed.SGD(**sgd, loss=lambda m, x, y, g: m(x).square().mean())},
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "momentum",
        "undecayed bias",
        "server-step",
        "geometric median",
        "batch norm",
        "step-size",
        "renormalised",
        "custom loss",
    ],
)
def test_a_run_that_breaks_a_condition_is_refused_by_name(name):
    condition, settings = broken(name)
    _, result = trained(**settings)
    for threat in (THREAT, RemovalThreat(clients=[0])):
        with pytest.raises(ConditionError, match=f"condition '{condition}'") as caught:
            fed.certify(result.model, TEST, result.ledger, threat)
        assert caught.value.condition == condition


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_runs_are_refused(dtype):
    _, result = trained(dtype=dtype)
    with pytest.raises(
        ConditionError, match=f"condition 'float64'.*{str(dtype).removeprefix('torch.')}"
    ):
        fed.certify(result.model, TEST.to(dtype), result.ledger, THREAT)


def test_weights_that_clients_report_are_refused():
    _, result = trained()
    rounds = [replace(record, weights_from="clients") for record in result.ledger.rounds]
    with pytest.raises(ConditionError, match="condition 'server-weights'"):
        fed.certify(result.model, TEST, rounds, THREAT)


def test_samples_are_named_by_their_numbers_in_the_data_set():
    """Another data set in which just these samples differ: the deviation must cover what they
    do."""
    server = problem(clip=None)
    own = server.clients[3].where
    named = [int(own[2]), int(own[7])]
    x = server.clients[0].x.clone()
    x[named] = 1.0
    poisoned = replace(server, clients=[replace(one, x=x) for one in server.clients])
    clean, attacked = (one.run(3, progress=False) for one in (server, poisoned))
    threat = SampleThreat(clients=[3], samples={3: named}, input_norm=6**0.5)
    certificate = fed.certify(attacked.model, TEST, attacked.ledger, threat)
    parameters = [
        torch.cat([p.detach().flatten() for p in run.model.parameters()])
        for run in (clean, attacked)
    ]
    moved = float((parameters[0] - parameters[1]).norm())
    assert 0 < moved <= certificate.deviation
    assert agreed(certificate, clean.model)
    with pytest.raises(
        ValueError, match=r"threat\.samples must be samples that client 3 has drawn, got \[0, 1\]"
    ):
        fed.certify(attacked.model, TEST, attacked.ledger, replace(threat, samples={3: [0, 1]}))


def test_a_sample_that_is_given_twice_is_one_sample():
    server = problem()
    first = server.clients[0]
    twice = replace(first, indices=[*first.where[:1].repeat(6), *first.where[1:]])
    run = replace(server, clients=[twice, *server.clients[1:]]).run(2, progress=False)
    one = SampleThreat(clients=[0], samples=1, input_norm=2.0)
    named = replace(one, samples={0: first.where[:1].tolist()})
    once = server.run(2, progress=False).ledger
    assert (
        bounds.deviation(run.ledger.rounds, one).value
        == bounds.deviation(run.ledger.rounds, named).value
    )
    assert (
        bounds.deviation(run.ledger.rounds, one).value
        > 3 * bounds.deviation(once.rounds, one).value
    )


def test_clients_that_the_ledger_does_not_know_are_refused():
    _, result = trained(clip=3.0)
    threat = FeatureThreat(clients=[2, 8], rounds=[2], norm=0.1, per_batch=1)
    for ledger in (result.ledger, result.ledger.rounds):
        for ask in (
            lambda ledger: fed.certify(result.model, TEST, ledger, threat),
            lambda ledger: fed.withstood(margins(result.model, TEST), ledger, threat),
            lambda ledger: fed.published(votes(result), ledger, threat),
        ):
            with pytest.raises(
                ValueError, match=r"threat\.clients must be clients of the ledger, got \[8\]"
            ):
                ask(ledger)


def test_clients_that_were_never_drawn_changed_nothing():
    result = problem(fraction=0.2).run(1, progress=False)
    idle = next(id_ for id_, fate in result.ledger.fates(1).items() if fate == "not sampled")
    assert (
        fed.certify(result.model, TEST, result.ledger, RemovalThreat(clients=[idle])).deviation == 0
    )


class OwnWay(fed.Client):
    def fit(self, model, task):
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        return fed.Client.fit(self, model, task)


def mean(models, weights):
    """Unweighted, whatever it is called."""
    return fed.Aggregate(models.double().mean(dim=0), None)


@pytest.mark.parametrize(
    ("changes", "condition", "words"),
    [
        ({"aggregate": mean}, "plain-averaging", "aggregator='custom mean'"),
        (
            {"aggregate": type("GeometricMedian", (), {"__call__": staticmethod(mean)})()},
            "plain-averaging",
            "custom",
        ),
        ({"own": True}, "plain-loss", "loss='custom'"),
    ],
)
def test_what_is_not_ours_does_not_pass_for_it(changes, condition, words):
    server = problem(clip=3.0, noise_std=0.05)
    if changes.pop("own", False):
        first = server.clients[0]
        changes["clients"] = [
            OwnWay(0, first.x, first.y, first.trainer, first.indices),
            *server.clients[1:],
        ]
    result = replace(server, **changes).run(3, progress=False)
    with pytest.raises(ConditionError, match=f"condition '{condition}'.*{words}"):
        fed.certify(result.model, TEST, result.ledger, THREAT)
    with pytest.raises(ConditionError):
        published(result)


def test_weights_are_of_the_registration_or_of_the_server():
    server = problem()
    ids = {}
    for name, one in (
        ("registration", server),
        ("server", replace(server, sizes=dict.fromkeys(range(8), 12))),
    ):
        result = one.run(2, progress=False)
        assert {record.weights_from for record in result.ledger.rounds} == {name}
        ids[name] = {
            a.id for a in fed.certify(result.model, TEST, result.ledger, THREAT).assumptions
        }
    assert ids["registration"] - ids["server"] == {"registered-sizes"}


PUBLISHED = FeatureThreat(
    clients=[0, 3], rounds=[2], norm=0.003, per_batch=1, scale=4.0, comparator="scaled"
)


def votes(result, **options):
    smoother = ParameterSmoother(result.model, 0.05, 3)
    return smoother.certify(TEST, n=1000, **{"runner_up": "bounded"} | options)


def published(result, threat=PUBLISHED, ledger=None, lipschitz=None, **options):
    ledger = result.ledger if ledger is None else ledger
    return fed.published(votes(result, **options), ledger, threat, lipschitz)


def test_the_published_certificate_is_corollary_one_on_the_ledgers_numbers():
    server = problem(clip=lambda t: 1.0 + t, noise_std=0.05)
    result = server.run(4, progress=False)
    certificate = published(result, confidence="hoeffding")
    record = result.ledger.rounds[1]
    attackers = [
        bounds.Attacker(one.weight, 4.0, len(one.batch_sizes), 0.5, 1 / 4)
        for one in record.participants
        if one.client in (0, 3)
    ]
    expected = bounds.crfl_radius(
        certificate.p_lower.numpy(),
        certificate.p_upper.numpy(),
        attackers=attackers,
        lipschitz=bounds.logistic_lipschitz(3.0),
        sigma=0.05,
        later=[(4.0, 0.05), (5.0, 0.05)],
    )
    np.testing.assert_array_equal(certificate.reach.numpy(), expected)
    assert (certificate.space, certificate.unit) == ("training inputs", "backdoor, input units")
    held = certificate.reach > 0.003
    assert torch.equal(certificate.abstained, ~held | (certificate.p_lower <= certificate.p_upper))
    assert int(held.sum()) > 0
    assert "published-form" in {a.id for a in certificate.assumptions}
    tighter = published(result)
    assert bool((tighter.reach >= certificate.reach).all())
    given = published(result, confidence="hoeffding", lipschitz=8.0)
    np.testing.assert_allclose(
        given.reach, certificate.reach * bounds.logistic_lipschitz(3.0) / 8.0, rtol=1e-9
    )


def test_the_short_last_batch_counts_with_its_own_share():
    server = problem(
        clip=3.0, trainer=fed.SGD(lr=0.5, batch_size=5, decay=0.1)
    )  # batches of 5, 5 and 2
    result = server.run(3, progress=False)
    assert result.ledger.rounds[1].participants[0].batch_sizes == (5, 5, 2)
    share = replace(PUBLISHED, per_batch=None, share=0.5)
    np.testing.assert_array_equal(published(result).reach, published(result, share).reach)


def test_the_published_formula_asks_for_the_lipschitz_constant_of_a_network():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    result = problem(model=network, clip=2.0, noise_std=0.05).run(3, progress=False)
    with pytest.raises(
        ValueError, match="lipschitz must be given for Sequential: Lemma 1 is of linear models"
    ):
        published(result)
    assert published(result, lipschitz=5.0).reach.isfinite().all()


def test_a_geometric_median_gets_the_published_formula_marked_as_unsound():
    server = problem(clip=3.0, aggregate=fed.GeometricMedian())
    result = server.run(3, progress=False)
    certificate = published(result)
    assert any(
        a.id == "weights-of-data" and "UNSOUND" in a.statement for a in certificate.assumptions
    )
    with pytest.raises(ConditionError, match="plain-averaging"):
        fed.certify(result.model, TEST, result.ledger, THREAT)
    krum = problem(clip=3.0, aggregate=fed.Krum(1)).run(3, progress=False)
    with pytest.raises(ConditionError, match=r"plain-averaging.*Krum"):
        published(krum)


@pytest.mark.parametrize(
    ("settings", "condition"),
    [
        ({"trainer": fed.SGD(lr=0.5, batch_size=4, decay=0.1, momentum=0.5)}, "plain-sgd"),
        ({"trainer": lambda model, x, y, task: None}, "plain-sgd"),
        ({"server_step": 2.0}, "server-step"),
    ],
    ids=["momentum", "opaque", "step"],
)
def test_the_published_formula_is_not_evaluated_for_other_training(settings, condition):
    result = problem(clip=3.0, noise_std=0.05, **settings).run(3, progress=False)
    with pytest.raises(ConditionError, match=f"condition '{condition}'"):
        published(result)


def test_the_published_formula_takes_the_weights_that_were_used():
    server = problem(clip=3.0, noise_std=0.05, reject="renormalise")
    broken = Attack(update=lambda own, honest, generator: own * torch.nan)
    result = server.run(2, attacks=dict.fromkeys((1, 2, 4, 5), broken), progress=False)
    certificate = published(result)
    assert result.ledger.rounds[1].participants[0].weight == pytest.approx(1 / 8)
    expected = bounds.crfl_radius(
        certificate.p_lower.numpy(),
        certificate.p_upper.numpy(),
        attackers=[bounds.Attacker(1 / 4, 4.0, 3, 0.5, 1 / 4)] * 2,
        lipschitz=bounds.logistic_lipschitz(3.0),
        sigma=0.05,
        later=[],
    )
    np.testing.assert_allclose(certificate.reach.numpy(), expected, rtol=1e-9)
    with pytest.raises(ConditionError, match="zero-for-rejected"):
        published(result, ledger=result.ledger.rounds)  # records alone do not tell the weights


def test_attackers_who_were_not_there_change_nothing():
    server = problem(clip=3.0, fraction=0.5)
    result = server.run(3, progress=False)
    there = {one.client for one in result.ledger.rounds[1].participants}
    absent = next(client for client in range(8) if client not in there)
    certificate = published(result, replace(PUBLISHED, clients=[absent]))
    assert set(certificate.reach[certificate.label != ABSTAIN].tolist()) == {np.inf}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"threat": FeatureThreat(clients=[0], rounds=[9], norm=0.1)},
            ValueError,
            r"rounds 1 to 3, got \[9\]",
        ),
        ({"threat": ClientThreat(clients=[0])}, ConditionError, "condition 'update-clip'"),
        (
            {"x": TEST.float()},
            ValueError,
            "x and the model must be float64, got torch.float32 and torch.float64",
        ),
        ({"x": TEST * float("nan")}, ValueError, "x must be finite"),
        (
            {"x": TEST[0]},
            ValueError,
            r"x must be a batch \(B, ...\) of at least one input, got shape \(5,\)",
        ),
        ({"threat": "removal"}, TypeError, "threat must be a bounds.Threat, got str"),
    ],
)
def test_bad_arguments_are_named_and_quoted(changes, error, words):
    _, result = trained()
    arguments = {"x": TEST, "threat": THREAT} | changes
    with pytest.raises(error, match=words):
        fed.certify(result.model, arguments["x"], result.ledger, arguments["threat"])


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"method": "margin"}, r"fed.certify\(model, x, ledger, threat\)"),
        ({"method": "votes", "sigma": 0.1}, r"fed.withstood\(smooth.exact_votes"),
        ({"sigma": 0.1, "n": 100}, r"fed.withstood\(smooth.ParameterSmoother"),
        ({"method": "published", "sigma": 0.1}, r"fed.published\(smooth.ParameterSmoother"),
        ({"index": [1, 2]}, r"fed.withstood\(smooth.margins\(model, x, index\)"),
    ],
)
def test_arguments_that_chose_a_method_name_the_call_that_they_became(old, now):
    _, result = trained()
    with pytest.raises(TypeError, match=now):
        fed.certify(result.model, TEST, result.ledger, THREAT, **old)


def test_only_certificates_over_parameters_are_held_against_threats():
    _, result = trained()
    over_inputs = GaussianSmoother(result.model, 0.5, 3).certify(TEST[:5], n=20)
    with pytest.raises(ValueError, match=r"in l2 over parameters, .* got l2 over input"):
        fed.withstood(over_inputs, result.ledger, THREAT)
    with pytest.raises(TypeError, match=r"certificate must be a smooth.Certificate, got Linear"):
        fed.withstood(result.model, result.ledger, THREAT)
    held = fed.certify(result.model, TEST, result.ledger, THREAT)
    with pytest.raises(TypeError, match="no threat was held against"):
        fed.withstood(held, result.ledger, THREAT)
    with pytest.raises(TypeError, match=r"certificate must be of smooth.ParameterSmoother"):
        fed.published(margins(result.model, TEST), result.ledger, PUBLISHED)
    for make in (margins, lambda model, x: exact_votes(model, x, 0.1)):
        with pytest.raises(ValueError, match="model must be one affine map"):
            make(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(), TEST)
    with pytest.raises(ValueError, match=r"sigma must lie in \(0, inf\), got 0"):
        exact_votes(result.model, TEST, 0)
    with pytest.raises(ValueError, match="index must hold 400 whole numbers"):
        margins(result.model, TEST, [1, 2])


def test_a_sequential_certificate_is_held_against_a_threat():
    _, result = trained()
    needed = bounds.deviation(result.ledger.rounds, THREAT).value
    smoother = ParameterSmoother(result.model, 0.1, 3)
    enough = smoother.certify_at(TEST[:50], needed * 1.01, n_max=2000)
    held = fed.withstood(enough, result.ledger, THREAT)
    assert torch.equal(held.label, enough.label)
    assert 0 < int((~held.abstained).sum()) < 50
    short = smoother.certify_at(TEST[:50], needed * 0.99, n_max=2000)
    assert bool(fed.withstood(short, result.ledger, THREAT).abstained.all())


def test_a_result_is_neither_model_nor_ledger():
    _, result = trained()
    with pytest.raises(TypeError, match="model must be a Module, got Result"):
        fed.certify(result, TEST, result.ledger, THREAT)
    with pytest.raises(
        TypeError, match=r"ledger must be a fed.Ledger or a sequence of bounds.Round, got Result"
    ):
        fed.certify(result.model, TEST, result, THREAT)


def test_a_printed_certificate_says_against_what_and_how_far():
    _, result = trained()
    certificate = fed.certify(result.model, TEST, result.ledger, THREAT)
    text = repr(certificate)
    assert (
        "against FeatureThreat(clients=(0,), rounds=(2,), per_batch=1, norm=0.1): exact margins"
        in text
    )
    assert "p_lower" not in text
    needed = float(text.split("more than ")[1].split()[0])
    assert needed - 1e-4 < certificate.deviation <= needed
    assert "p_lower" in repr(fed.withstood(votes(result), result.ledger, THREAT))


@pytest.mark.parametrize(
    "threat",
    [
        RemovalThreat(clients=[0]),
        FeatureThreat(at_most=1, rounds=[2], norm=0.1, per_batch=1),
        FeatureThreat(clients=[0], norm=0.1, per_batch=1),
        FeatureThreat(clients=[0], rounds=[1, 2], norm=0.1, per_batch=1),
    ],
    ids=str,
)
def test_the_published_formula_is_for_one_attacked_round_of_named_clients(threat):
    _, result = trained(clip=3.0)
    with pytest.raises(
        ValueError, match="threat must name the clients and one round of a FeatureThreat"
    ):
        published(result, threat)


def kinds(result):
    smoother = ParameterSmoother(result.model, 0.1, 3)
    return {
        "margins": margins(result.model, TEST),
        "exact votes": exact_votes(result.model, TEST, 0.1),
        "votes": smoother.certify(TEST, n=300),
        "one radius": smoother.certify_at(TEST[:40], 0.2, n_max=1000),
    }


@pytest.mark.parametrize("kind", ["margins", "exact votes", "votes", "one radius"])
def test_a_certificate_is_read_back_as_it_was(tmp_path, kind):
    _, result = trained()
    held = fed.withstood(kinds(result)[kind], result.ledger, THREAT)
    assert 0 < int(held.abstained.sum()) < len(held)
    held.save(tmp_path / "c.json")
    for again in (
        fed.PoisoningCertificate.load(tmp_path / "c.json"),
        fed.PoisoningCertificate.load(tmp_path / "c.json", result.ledger),
    ):
        for name in ("label", "radius", "reach", "unconditional", "p_lower", "counts", "index"):
            assert torch.equal(getattr(again, name), getattr(held, name)), name
        for name in ("threat", "deviation", "bound", "law", "alpha"):
            assert getattr(again, name) == getattr(held, name), name
        assert {a.id for a in held.assumptions} == {a.id for a in again.assumptions}
        assert repr(again).split("Assumes")[0] == repr(held).split("Assumes")[0]


def edited(path, change):
    """The file with its content changed and its checksum made to fit."""
    document = json.loads(path.read_text())
    change(document["content"])
    document["crc32"] = zlib.crc32(json.dumps(document["content"], allow_nan=False).encode())
    path.write_text(json.dumps(document))


def test_numbers_in_a_file_that_do_not_follow_are_refused(tmp_path):
    _, result = trained()
    path, load = tmp_path / "c.json", fed.PoisoningCertificate.load
    found = kinds(result)

    def lie(kind, change, words):
        fed.withstood(found[kind], result.ledger, THREAT).save(path)
        edited(path, change)
        with pytest.raises(ValueError, match=words):
            load(path)

    def longer(content):
        content["certificate"]["radius"] = ["9.0"] * len(content["certificate"]["radius"])

    lie("exact votes", longer, "larger than the probabilities of its votes allow")
    lie("votes", longer, "cannot be read as a poisoning certificate")
    lie("margins", lambda c: c["certificate"].update(label=[0]), "every column must hold 1")
    lie("margins", lambda c: c.update(kind="guess"), "cannot be read")
    lie("margins", lambda c: c.update(deviation="-1"), "deviation must lie in")
    lie("margins", lambda c: c["threat"].update(level="pixel"), "level must be one of")
    fed.withstood(found["margins"], result.ledger, THREAT).save(path)
    edited(path, lambda content: content.update(deviation="1e-9"))
    assert not load(path).abstained.any()  # a file alone is what it says; the ledger knows better
    with pytest.raises(ValueError, match="must be about this ledger"):
        load(path, result.ledger)
    path.write_text(path.read_text().replace("margins", "margin"))


def test_a_backdoor_norm_is_not_saved():
    _, result = trained()
    norms = fed.largest_backdoors(
        fed.certify(result.model, TEST, result.ledger, THREAT), result.ledger
    )
    with pytest.raises(TypeError, match="only a certificate over parameters can be saved"):
        norms.save("nowhere.json")


def test_the_model_is_that_of_the_ledger():
    server, result = trained(clip=0.5)
    certificate = fed.certify(result.model, TEST, result.ledger, THREAT)
    assert "known-model" in {a.id for a in certificate.assumptions}
    assert "whole-ledger" not in {a.id for a in certificate.assumptions}
    other = replace(server, seed=5).run(3)
    base = margins(other.model, TEST)
    votes_ = ParameterSmoother(other.model, 0.1, 3).certify(TEST, n=50)
    for ask in (
        lambda: fed.certify(other.model, TEST, result.ledger, THREAT),
        lambda: fed.withstood(base, result.ledger, THREAT),
        lambda: fed.withstood(votes_, result.ledger, THREAT, other.model),
    ):
        with pytest.raises(ValueError, match="model must be the one that the ledger's last round"):
            ask()
    # Sampled votes do not know their model: then it is taken on trust, and said so.
    trusted = fed.withstood(votes_, result.ledger, THREAT)
    assert "whole-ledger" in {a.id for a in trusted.assumptions}


def test_a_ledger_that_was_cut_or_put_together_is_refused():
    server, result = trained(clip=0.5)
    rounds, other = result.ledger.rounds, replace(server, seed=5).run(3).ledger.rounds
    with pytest.raises(ValueError, match=r"must begin with round 1, .* got round 2"):
        fed.certify(result.model, TEST, rounds[1:], replace(THREAT, rounds=[2]))
    with pytest.raises(ValueError, match="must be of one run: round 2 sent other weights"):
        fed.certify(result.model, TEST, [other[0], *rounds[1:]], THREAT)
    bare = [replace(one, sent_hash="", model_hash="", passed_hash="") for one in rounds]
    certificate = fed.certify(result.model, TEST, bare, THREAT)
    assert "whole-ledger" in {a.id for a in certificate.assumptions}
    far = nn.Linear(5, 3).double()
    with torch.no_grad():
        far.weight.fill_(50.0)
    with pytest.raises(ValueError, match=r"within its clip 0\.5, got weights of norm 19\d\."):
        fed.certify(far, TEST, bare, THREAT)


def test_a_removal_is_any_retraining_where_nothing_is_drawn():
    full = fed.SGD(lr=0.5, batch_size=None, decay=0.1)
    calm = problem(trainer=full, noise_std=None)
    result = calm.run(3)
    removal = RemovalThreat(clients=[2])
    certificate = fed.certify(result.model, TEST, result.ledger, removal)
    ids = {a.id for a in certificate.assumptions}
    assert "any-retraining" in ids
    assert "coupled-runs" not in ids
    # Another seed draws nothing else: a training without the client gives the same predictions.
    again = replace(calm, seed=77, clients=[one for one in calm.clients if one.id != 2]).run(3)
    assert agreed(certificate, again.model)
    assert int((~certificate.abstained).sum()) > 50
    odd = [replace(calm.clients[0], trainer=replace(full, momentum=0.5)), *calm.clients[1:]]
    for drawing in (
        replace(calm, clients=odd, update_clip=1.0),
        problem(trainer=full),
        problem(noise_std=None),
        problem(trainer=full, noise_std=None, fraction=0.5),
        # As many samples as a mini-batch has, says the server; there are more to draw from.
        problem(
            trainer=replace(full, batch_size=1),
            noise_std=None,
            sizes={one.id: 1 for one in calm.clients},
        ),
        # Noise whose norm is too small for a number.
        problem(trainer=full, clip=5.0, noise_std=1e-170),
    ):
        run = drawing.run(3)
        named = fed.certify(run.model, TEST, run.ledger, RemovalThreat(at_most=1)).assumptions
        assert "coupled-runs" in {a.id for a in named}


def test_everybody_who_is_left_may_have_been_drawn_by_luck():
    """Three of four are drawn in each round, and a fourth was excluded."""
    full = fed.SGD(lr=0.5, batch_size=None, decay=0.1)
    for seed in range(100):
        server = problem(clients=4, trainer=full, noise_std=None, fraction=0.75)
        run = replace(server, seed=seed).run(2, exclude=[3])
        if all(len(record.participants) == 3 for record in run.ledger.rounds):
            break
    else:
        raise AssertionError("no seed draws the other three in both rounds")
    named = fed.certify(run.model, TEST, run.ledger, RemovalThreat(clients=[0])).assumptions
    assert "coupled-runs" in {a.id for a in named}


def test_one_client_that_sends_nonsense_voids_no_statement_about_unknown_ones():
    calm = problem(clients=24, update_clip=0.6)
    for update in (lambda u, known, g: u * torch.nan, lambda u, known, g: 1e3 * u):
        run = calm.run(2, attacks={5: Attack(None, None, update)})
        threat = ClientThreat(at_most=1, rounds=[2])
        certificate = fed.certify(run.model, TEST, run.ledger, threat)
        assert "clients [5] counted by the clip of their updates" in repr(certificate)
        assert certificate.deviation < np.inf
        named = fed.certify(run.model, TEST, run.ledger, replace(threat, clients=[5]))
        assert named.deviation < 2 * certificate.deviation


def test_a_reach_that_the_deviation_equals_is_not_enough():
    _, result = trained()
    base = margins(result.model, TEST)
    needed = bounds.deviation(result.ledger.rounds, THREAT).value
    just = replace(base, radius=torch.full_like(base.radius, needed))
    assert bool(fed.withstood(just, result.ledger, THREAT).abstained.all())
    beyond = replace(base, radius=torch.full_like(base.radius, np.nextafter(needed, 1)))
    assert not bool(fed.withstood(beyond, result.ledger, THREAT).abstained.any())
