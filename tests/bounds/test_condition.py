"""Every condition is checked, named and documented."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ledgers import log, participant, record, value

from rsfl.bounds import ConditionError, Threat, conditions, deviation
from rsfl.bounds.condition import CONDITIONS

LAST = Threat("feature", clients=[0], norm=0.1, rounds=[3])
ONE = {"client": 1, "weight": 0.25}

BROKEN = [
    ("consecutive-rounds", log()[::2], "[1, 3]"),
    ("plain-averaging", log(aggregator="geometric median"), "aggregator='geometric median'"),
    ("linear-model", log(model="linear+batchnorm"), "model='linear+batchnorm'"),
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
    (
        "honest-updates-intact",
        log(
            participants=[
                participant(weight=0.5, outcome="clipped"),
                participant(client=1, weight=0.5),
            ],
            update_clip=9.0,
        ),
        "outcome='clipped'",
    ),
    ("honest-updates-intact", log(update_clip=0.1), "updates of norm up to 0.3"),
    ("honest-updates-intact", log(reject_norm=0.1), "updates of norm up to 0.3"),
    ("recorded-samples", log(participants=[participant(weight=1, samples=None)]), "samples=None"),
    ("update-clip", log(), "update_clip=inf"),
    ("someone-left", log(participants=[participant(weight=1.0)]), "weights=[1.0]"),
]
THREAT_FOR = {
    "recorded-samples": replace(LAST, samples=1),
    "update-clip": Threat("client", clients=[0]),
    "someone-left": Threat("removal", clients=[0]),
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


def test_every_condition_has_a_run_that_breaks_it():
    assert {name for name, _, _ in BROKEN} == set(CONDITIONS)
    assert set(conditions(log(), LAST)) < set(CONDITIONS)


def test_register_in_the_documentation_is_complete():
    page = (Path(__file__).parents[2] / "docs" / "theory" / "poisoning.md").read_text()
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][
        1:
    ] == list(CONDITIONS)


def test_a_removed_client_may_have_done_anything():
    odd = participant(weight=0.25, lr=50.0, decay=(0.0, 1.0), input_norm=np.inf, outcome="clipped")
    rounds = [
        record(
            participants=[odd, *(participant(client=i, weight=0.25) for i in (1, 2, 3))],
            update_clip=9.0,
        )
    ]
    assert value(rounds, Threat("removal", clients=[0])) > 0
    with pytest.raises(ConditionError, match="client 0: condition 'one-decay'"):
        deviation(rounds, Threat("removal", clients=[1]))
    with pytest.raises(ConditionError, match="client 0: condition 'one-decay'"):
        deviation(rounds, Threat("removal", at_most=1))


def test_an_update_clip_must_leave_room_in_the_run_that_was_not_seen():
    # The logged updates of norm 0.3 pass a clip at 0.32. In the attacked run they might have been
    # longer than that.
    threat = replace(LAST, rounds=[1], norm=5.0)
    with pytest.raises(ConditionError, match="'honest-updates-intact'"):
        deviation(log(update_clip=0.32), threat)
    assert 0 < value(log(update_clip=5.0), threat) < np.inf


def test_an_update_clip_must_leave_room_for_what_the_removed_clients_changed():
    threat = Threat("removal", clients=[0])
    assert 0 < value(log(1, update_clip=0.32), threat) < np.inf
    with pytest.raises(ConditionError, match="round 2: condition 'honest-updates-intact'"):
        deviation(log(2, update_clip=0.32), threat)
    assert 0 < value(log(2, update_clip=0.6), threat) < np.inf


def test_empty_ledger_and_foreign_rounds_are_refused():
    with pytest.raises(ValueError, match="at least one round"):
        deviation([], LAST)
    with pytest.raises(ValueError, match=r"rounds 1 to 3, got \[4\]"):
        deviation(log(), replace(LAST, rounds=[3, 4]))
