"""The recursion of poisoning bounds a second time: it agrees with the first on every ledger."""

import dataclasses
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import PLAIN, PLAIN_SGD, log, participant, record, threat

from rsfl import bounds
from rsfl.verify.conditions import broken_conditions
from rsfl.verify.recursion import deviation


def documents(rounds, asked):
    """What files say of a ledger's rounds and of a threat."""
    text = json.dumps([dataclasses.asdict(one) for one in rounds]).replace("Infinity", '"inf"')
    return json.loads(text), json.loads(json.dumps(asked.to_dict()))


def agree(rounds, asked, closeness=1e-9):
    """The bound that was computed is never below the second derivation, and not far above it."""
    value = bounds.deviation(rounds, asked).value
    ledger, document = documents(rounds, asked)
    assert broken_conditions(ledger, document) == []
    again = deviation(ledger, document)
    assert again.proves_at_most(value), f"{value!r} is below {again}"
    if math.isfinite(value):
        assert value <= float(again.ball().mid()) * (1 + closeness) + 1e-13


@st.composite
def participants(draw, clients, limited):
    """Clients of every kind: some are cut short, some train in a way that nothing is known of."""
    everyone, weights = [], [draw(st.integers(1, 9)) for _ in range(clients)]
    for i in range(clients):
        size, decay = draw(st.floats(1, 3)), draw(st.sampled_from([0.0, 0.1, 1.0]))
        sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        outcomes = ["used", "used", "used", "rejected", "absent", *["clipped"] * limited]
        outcome = draw(st.sampled_from(outcomes))
        odd = limited and draw(st.integers(0, 9)) == 0
        none = outcome in ("rejected", "absent")
        everyone.append(
            participant(
                client=i,
                weight=weights[i] / sum(weights),
                lr=draw(st.floats(0.05, 1)) / (decay + size**2 / 2),
                decay=(decay, decay),
                input_norm=math.inf if odd else size,
                batch_sizes=sizes,
                samples=draw(st.lists(st.integers(0, 5), min_size=sum(sizes), max_size=sum(sizes))),
                update_norm=0.0 if none else draw(st.floats(0, 1)),
                gap=draw(st.floats(0, 0.1)),
                outcome=outcome,
            )
        )
    return everyone


@st.composite
def runs(draw, clients):
    clip = draw(st.sampled_from([math.inf, 0.5, 3.0, 60.0]))
    found = []
    for t in range(draw(st.integers(1, 4))):
        everyone = draw(participants(clients, clip < math.inf))
        found.append(
            record(
                t + 1,
                participants=everyone,
                broadcast_norm=draw(st.floats(0, 1)),
                noise_norm=draw(st.sampled_from([0.0, 0.01])),
                clip=draw(st.sampled_from([math.inf, math.inf, 1.0, 0.1])),
                server_step=draw(st.sampled_from([0.5, 1.0])),
                update_clip=clip,
                reject_norm=draw(st.sampled_from([math.inf, math.inf, 2.0]))
                if clip < 9e9
                else math.inf,
            )
        )
    return found


@st.composite
def threats(draw, clients):
    level = draw(st.sampled_from(["feature", "sample", "client", "forensic", "removal"]))
    named = draw(st.lists(st.integers(0, clients - 1), unique=True, max_size=2))
    most = draw(st.integers(0 if named else 1, 2))
    given = {"clients": named, "at_most": most}
    if level != "removal" and draw(st.booleans()):
        given["rounds"] = [1]
    if level in ("feature", "sample"):
        how = draw(st.sampled_from(["all", "share", "per_batch", "samples", "named"]))
        if how == "share":
            given["share"] = draw(st.floats(0.1, 1))
        elif how in ("per_batch", "samples"):
            given[how] = draw(st.integers(1, 3))
        elif how == "named" and not most:
            given["samples"] = {client: [draw(st.integers(0, 5))] for client in named}
        given["scale"] = draw(st.sampled_from([1.0, 2.0, (0.5, 3.0), (0.0, 1.0)]))
        given["valid"] = draw(st.booleans())
        given["comparator"] = "scaled" if not most and draw(st.booleans()) else "clean"
        if level == "sample" or draw(st.booleans()):
            given["input_norm"] = draw(st.floats(1, 4))
    if level == "feature":
        given |= {"norm": draw(st.floats(0.01, 1)), "flips": draw(st.booleans())}
    return threat(level, **given)


@settings(max_examples=200)
@given(st.data(), st.integers(2, 5))
def test_both_derivations_agree(data, clients):
    rounds, asked = data.draw(runs(clients)), data.draw(threats(clients))
    try:
        bounds.deviation(rounds, asked)
    except bounds.ConditionError:
        return
    agree(rounds, asked)


def test_an_attacker_of_whose_training_nothing_is_known_is_paid_for():
    odd = participant(client=0, weight=0.5, input_norm=math.inf)
    rounds = [record(participants=[odd, participant(client=1, weight=0.5)], update_clip=60.0)]
    for asked in (
        threat("sample", at_most=1, input_norm=2.0),
        threat("feature", clients=[0], norm=0.1, scale=(0.0, 2.0)),
    ):
        assert math.isfinite(bounds.deviation(rounds, asked).value)
        agree(rounds, asked)


def test_what_is_left_of_weights_does_not_cancel():
    weights = [1 - 3e-9, 1e-9, 1e-9, 1e-9]
    everyone = [participant(client=i, weight=w) for i, w in enumerate(weights)]
    agree([record(participants=everyone)], threat("removal", at_most=1), closeness=1e-12)


@pytest.mark.parametrize(
    "asked",
    [
        threat("removal", clients=[0]),
        threat("removal", at_most=1),
        threat("client", clients=[0]),
        threat("client", at_most=2),
        threat("forensic", clients=[0, 1]),
        threat("sample", at_most=1, input_norm=2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [0.2, 60.0])
def test_sums_over_many_clients_are_paid_to_the_last_digit(asked, limit):
    """Sixty clients, all cut short or none: what is granted to rounding grows with their number."""
    rng = random.Random(5)
    weights = [rng.uniform(0.2, 1) for _ in range(60)]
    cut = "clipped" if limit < 1 else "used"
    rounds = [
        record(
            t,
            participants=[
                participant(
                    client=i,
                    weight=weight / sum(weights),
                    lr=rng.uniform(0.05, 0.9),
                    update_norm=rng.uniform(0, 0.2),
                    gap=rng.uniform(0, 0.1),
                    outcome=cut,
                )
                for i, weight in enumerate(weights)
            ],
            update_clip=limit,
        )
        for t in (1, 2, 3)
    ]
    agree(rounds, asked, closeness=1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, 300])
@pytest.mark.parametrize(
    "asked",
    [
        threat("feature", clients=[0], norm=0.1, samples=1),
        threat("feature", at_most=1, norm=0.1, flips=False),
        threat("sample", clients=[0], input_norm=2.0, per_batch=1),
        threat("sample", clients=[0], input_norm=2.0, samples=3),
        threat("feature", clients=[0], norm=1e-6, flips=False, scale=2.0),
        threat("client", clients=[0]),
    ],
    ids=str,
)
def test_sums_over_many_steps_and_samples_are_paid_to_the_last_digit(asked, steps, decay):
    """Six thousand samples, in one batch or in three hundred."""
    rng = random.Random(6)
    limit = 60.0 if asked.level == "client" else math.inf
    everyone = [
        participant(
            client=i,
            weight=0.5,
            lr=rng.uniform(0.05, 0.3),
            decay=(decay, decay),
            batch_sizes=[6000 // steps] * steps,
            samples=[rng.randrange(20) for _ in range(6000)],
        )
        for i in range(2)
    ]
    agree([record(participants=everyone, update_clip=limit)], asked, closeness=1e-11)


def test_who_may_be_cut_short_is_told_if_it_is_one_of_several():
    calm = participant(client=0, weight=0.5, lr=0.01)
    wild = participant(client=1, weight=0.5, lr=0.9)
    rounds = [record(participants=[calm, wild], update_clip=0.5)]
    for clients in ([0, 1], [1]):
        asked = threat("feature", clients=clients, norm=0.1)
        assert bounds.deviation(rounds, asked).comparison == "honest and clipped"
    asked = threat("feature", clients=[0], norm=0.1)
    assert bounds.deviation(rounds, asked).comparison == "honest"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"aggregator": "median"}, "aggregator is 'median'"),
        ({"model": "Sequential"}, "model is 'Sequential'"),
        ({"dtype": "float32"}, "dtype is 'float32'"),
        ({"reject": "renormalise"}, "reject is 'renormalise'"),
        ({"clip_fixed": False}, "clip_fixed is False"),
        ({"weights_from": "clients"}, "weights are what clients report"),
        ({"server_step": 1.5}, "the server steps by 1.5"),
        ({"sent_hash": "ab"}, "round 2: it sent other weights"),
    ],
)
def test_broken_conditions_are_named(changes, text):
    rounds = log(2)
    rounds[1] = record(2, **changes)
    found = broken_conditions(*documents(rounds, threat("removal", at_most=1)))
    assert any(text in one for one in found), found


def test_ledgers_that_are_cut_or_cannot_answer():
    asked = threat("client", clients=[0], rounds=[2])
    ledger, document = documents(log(3), asked)
    assert "its rounds are [2, 3]" in str(broken_conditions(ledger[1:], document))
    assert "attacks the rounds [2]" in str(broken_conditions(ledger[:1], document))
    with pytest.raises(ValueError, match="round 2: updates are not clipped"):
        deviation(ledger, document).ball()
    odd = participant(client=0, weight=1.0, momentum=0.9)
    rounds = [record(participants=[odd])]
    told = broken_conditions(*documents(rounds, threat("removal", at_most=1)))
    assert told == ["round 1: client 0 trains in another way, unclipped"]
    assert PLAIN_SGD["momentum"] == 0
    assert PLAIN["aggregator"] == "mean"
