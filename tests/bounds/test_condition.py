"""Every condition is checked, named and documented."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ledgers import THREATS, log, participant, record, value

from rsfl.bounds import (
    ClientThreat,
    ConditionError,
    FeatureThreat,
    RemovalThreat,
    conditions,
    deviation,
)
from rsfl.bounds.condition import CONDITIONS

LAST = FeatureThreat(clients=[0], norm=0.1, rounds=[3])
ONE = {"client": 1, "weight": 0.25}

BROKEN = [
    ("consecutive-rounds", log()[::2], "[1, 3]"),
    ("plain-averaging", log(aggregator="geometric median"), "aggregator='geometric median'"),
    ("linear-model", log(model="linear+batchnorm"), "model='linear+batchnorm'"),
    ("linear-model", log(model="linear head"), "model='linear head'"),  # behind which layers?
    ("features-named", log(model="linear head", features_hash="ab"), "norm=0.1"),
    ("plain-loss", log(participants=[participant(weight=1, loss="hinge")]), "loss='hinge'"),
    ("plain-sgd", log(participants=[participant(weight=1, momentum=0.9)]), "momentum=0.9"),
    ("plain-sgd", log(participants=[participant(weight=1, optimizer="adam")]), "optimizer='adam'"),
    ("one-decay", log(participants=[participant(weight=1, decay=(0.0, 0.1))]), "decay=(0.0, 0.1)"),
    (
        "known-inputs",
        log(participants=[participant(weight=1, input_norm=np.inf)]),
        "input_norm=inf",
    ),
    ("step-size", log(participants=[participant(weight=1, lr=1.7)]), "lr=1.7 > 1.63"),
    ("server-weights", log(weights_from="clients"), "weights_from='clients'"),
    ("server-weights", log(participants=[participant(weight=0.9)]), "weights that sum to 0.9"),
    ("server-step", log(server_step=1.5), "server_step=1.5"),
    ("fixed-clip", log(clip_fixed=False), "clip_fixed=False"),
    ("zero-for-rejected", log(reject="renormalise"), "reject='renormalise'"),
    ("float64", log(dtype="bfloat16"), "dtype='bfloat16'"),
    ("recorded-samples", log(participants=[participant(weight=1, samples=None)]), "samples=None"),
    ("update-clip", log(), "update_clip=inf"),
    ("someone-left", log(participants=[participant(weight=1.0)]), "weights=[1.0]"),
]
THREAT_FOR = {
    "recorded-samples": replace(LAST, samples=1),
    "update-clip": ClientThreat(clients=[0]),
    "someone-left": RemovalThreat(clients=[0]),
    "features-named": LAST,  # of runs with frozen layers alone
}


@pytest.mark.parametrize(
    ("name", "rounds", "quoted"), BROKEN, ids=[f"{one[0]}: {one[2]}" for one in BROKEN]
)
def test_broken_condition_is_named_and_quoted(name, rounds, quoted):
    with pytest.raises(ConditionError) as caught:
        deviation(rounds, THREAT_FOR.get(name, LAST))
    assert caught.value.condition == name
    assert name in str(caught.value)
    assert quoted in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("size", "decay"), [(1.0, 0.0), (1.7, 0.3), (3.1, 2.0)])
def test_the_longest_step_is_one_that_does_not_expand_and_rounding_is_forgiven(size, decay):
    longest = 2 / (decay + size**2 / 2)
    for lr in (longest, longest * (1 + 4e-16)):
        one = participant(weight=1, lr=lr, decay=(decay, decay), input_norm=size)
        assert "step-size" in conditions(log(participants=[one]), LAST)
    with pytest.raises(ConditionError, match="'step-size' fails"):
        conditions(log(participants=[replace(one, lr=longest * 1.0001)]), LAST)


def test_every_condition_has_a_run_that_breaks_it():
    assert {name for name, _, _ in BROKEN} == set(CONDITIONS)
    met = [name for name in CONDITIONS if name not in THREAT_FOR]
    assert sorted(conditions(log(), LAST)) == sorted(met)
    assert set(deviation(log(), LAST).checked) == set(met)


def test_register_in_the_documentation_is_complete():
    page = (Path(__file__).parents[2] / "docs" / "theory" / "poisoning.md").read_text()
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][
        1:
    ] == list(CONDITIONS)


def test_a_refusal_names_the_way_out():
    for rounds, threat, way in (
        (log(), ClientThreat(at_most=1), "give the server an update_clip"),
        (log(model="ResNet"), LAST, "frozen features, or use groups: fed.train_groups"),
        (log(aggregator="Krum"), LAST, "fed.train_groups takes any rule"),
        (
            log(participants=[participant(weight=1, momentum=0.9)]),
            LAST,
            "name the client in the threat, or give the server an update_clip",
        ),
    ):
        with pytest.raises(ConditionError, match=way):
            deviation(rounds, threat)


ODD = {
    "loss": "custom",
    "optimizer": "adam",
    "momentum": 0.9,
    "lr": 50.0,
    "decay": (0.0, 1.0),
    "input_norm": np.inf,
    "outcome": "clipped",
}


def one_odd(client=0, changes=ODD, **settings):
    """A round of four, one of whom breaks every condition on training."""
    everyone = [participant(client=i, weight=0.25) for i in range(4)]
    everyone[client] = participant(client=client, weight=0.25, **changes)
    return record(participants=everyone, **settings)


@pytest.mark.parametrize("name", ODD)
def test_a_removed_client_may_have_done_anything(name):
    rounds = [one_odd(changes={name: ODD[name]})]
    if name == "outcome":  # of an honest training, shortened: its length before is not known
        assert value(rounds, RemovalThreat(clients=[1])) > 0
        return
    assert value(rounds, RemovalThreat(clients=[0])) == value(
        [one_odd(changes={})], RemovalThreat(clients=[0])
    )
    with pytest.raises(ConditionError, match="client 0: condition"):
        deviation(rounds, RemovalThreat(clients=[1]))
    with pytest.raises(ConditionError, match="client 0: condition"):
        deviation(rounds, RemovalThreat(at_most=1))


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_one_client_does_not_void_a_statement_about_unknown_clients(threat):
    """A client that breaks every condition counts with the clip of its update, once, whoever it
    is."""
    if getattr(threat, "comparator", "clean") == "scaled":
        return
    odd = [one_odd(client=3, update_clip=2.0)]
    calm = [one_odd(client=3, changes={}, update_clip=2.0)]
    found, plain = deviation(odd, threat), deviation(calm, threat)
    assert found.touched == (3,)
    assert plain.touched == ()
    left = 0.5 if isinstance(threat, RemovalThreat) else 1.0
    assert plain.value < found.value <= plain.value * 2 + 0.25 * (0.3 + 2.0) / left * 1.001


@pytest.mark.parametrize("outcome", ["clipped", "rejected"])
def test_an_update_that_was_touched_is_priced_and_not_refused(outcome):
    norm = 0.0 if outcome == "rejected" else 0.3
    rounds = [
        one_odd(client=3, changes={"outcome": outcome, "update_norm": norm}, update_clip=0.35)
    ]
    calm = [one_odd(client=3, changes={}, update_clip=0.35)]
    for threat in (ClientThreat(at_most=1), RemovalThreat(at_most=1), ClientThreat(clients=[3])):
        found, plain = deviation(rounds, threat), deviation(calm, threat)
        assert 0 < found.value <= plain.value + 0.25 * 0.7 / 0.5
        assert found.value >= plain.value or threat.clients  # of a named one less may be known
        assert found.touched == (() if threat.clients else (3,))


def test_an_update_clip_too_tight_for_the_run_that_was_not_seen_is_paid_for():
    # The logged updates of norm 0.3 pass a clip at 0.32. In the attacked run they might have been
    # longer than that, and then they no longer contract.
    threat = replace(LAST, rounds=[1], norm=5.0)
    tight, free = deviation(log(update_clip=0.32), threat), deviation(log(update_clip=5.0), threat)
    assert tight.touched == (0, 1, 2, 3)
    assert free.touched == ()
    assert (tight.contraction[1:] == 1.0).all() or (
        tight.contraction[1:] > free.contraction[1:]
    ).all()


def test_empty_ledger_and_foreign_rounds_are_refused():
    with pytest.raises(ValueError, match="at least one round"):
        deviation([], LAST)
    with pytest.raises(ValueError, match=r"rounds 1 to 3, got \[4\]"):
        deviation(log(), replace(LAST, rounds=[3, 4]))


def test_an_honest_update_that_was_rejected_may_have_passed_in_the_other_run():
    # It lay just beyond the limit here and may lie just within it there, however close the two
    # runs are: then it is zero in one of them only.
    threat = FeatureThreat(clients=[0], norm=1e-9, flips=False, rounds=[1])
    lost = {"outcome": "rejected", "update_norm": 0.0}
    rounds = [one_odd(changes={}), one_odd(client=3, changes=lost, index=2, reject_norm=0.4)]
    calm = [one_odd(changes={}), one_odd(client=3, changes={}, index=2, reject_norm=0.4)]
    assert value(calm, threat) < 1e-8
    assert 0.25 * 0.4 < value(rounds, threat) < 0.25 * 0.4 * 1.001
    # Likewise one that passed here, and may lie beyond it there.
    edge = {"update_norm": 0.4 * (1 - 1e-12)}
    rounds = [one_odd(changes={}), one_odd(client=3, changes=edge, index=2, reject_norm=0.4)]
    assert 0.25 * 0.399 < value(rounds, threat) < 0.25 * 0.4 * 1.001


def test_what_is_left_after_a_removal_weighs_more_and_so_does_a_client_that_misbehaves():
    # Client 3 may send anything up to the clip at 0.5 in the run without client 0, in which it
    # weighs 0.25 / 0.75; here it sent 0.3.
    rounds = [one_odd(client=3, changes={"momentum": 0.9}, update_clip=0.5)]
    expected = (0.05 + 0.25 * (0.3 + 0.5)) / 0.75
    assert value(rounds, RemovalThreat(clients=[0])) == pytest.approx(expected, rel=1e-12)
    assert value(rounds, RemovalThreat(at_most=1)) == pytest.approx(expected, rel=1e-12)
    assert value(rounds, RemovalThreat(clients=[3])) == pytest.approx(0.05 / 0.75, rel=1e-12)
