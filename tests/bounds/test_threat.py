"""Threats refuse what contradicts itself, and what is no threat."""

import json
import pickle
from dataclasses import replace

import pytest
from ledgers import KINDS, THREATS, threat

from rsfl.bounds import ClientThreat, FeatureThreat, RemovalThreat, SampleThreat, Threat


@pytest.mark.parametrize(
    ("level", "given_", "message"),
    [
        ("removal", {}, "clients or at_most must name somebody"),
        ("removal", {"clients": []}, "certifies everything, got clients=\\(\\), at_most=0"),
        ("client", {"at_most": 0}, "clients or at_most must name somebody"),
        ("client", {"clients": [0], "rounds": []}, "rounds must name a round"),
        ("feature", {"clients": [0], "norm": -0.1}, "norm must lie in"),
        ("feature", {"clients": [0], "norm": 0.0, "flips": False}, "norm must be above 0"),
        ("feature", {"clients": [0, 0], "norm": 0.1}, "clients must be a list of different"),
        (
            "feature",
            {"clients": [0], "norm": 0.1, "scale": (2.0, 1.0)},
            "scale must be one number or a pair",
        ),
        ("feature", {"clients": [0], "norm": 0.1, "share": 0.1, "per_batch": 1}, "at most one"),
        ("feature", {"clients": [0], "norm": 0.1, "samples": 0}, "samples must be a count of at"),
        ("feature", {"clients": [0], "norm": 0.1, "per_batch": 0}, "per_batch must be a count of"),
        ("feature", {"clients": [0], "norm": 0.1, "share": 0.0}, "share must lie in \\(0, 1\\]"),
        (
            "feature",
            {"clients": [0], "norm": 0.1, "samples": {1: [2]}},
            "samples must name the clients",
        ),
        (
            "sample",
            {"clients": [1], "at_most": 1, "input_norm": 1.0, "samples": {1: [2]}},
            "nobody can be unknown",
        ),
        ("sample", {"clients": [0], "input_norm": float("inf")}, "input_norm must lie in"),
        ("feature", {"at_most": 1, "norm": 0.1, "comparator": "scaled"}, "clients must be named"),
        ("feature", {"clients": [0], "norm": 0.1, "comparator": "x"}, "comparator must be one of"),
    ],
)
def test_threats_refuse_contradictions_and_threats_by_nobody(level, given_, message):
    with pytest.raises(ValueError, match=message):
        threat(level, **given_)


@pytest.mark.parametrize(
    ("level", "given_"),
    [
        ("removal", {"clients": [0], "rounds": [1]}),
        ("client", {"clients": [0], "norm": 0.1}),
        ("client", {"clients": [0], "scale": 2.0}),
        ("forensic", {"clients": [0], "per_batch": 2}),
        ("sample", {"clients": [0], "input_norm": 1.0, "flips": True}),
        ("feature", {"clients": [0]}),
        ("sample", {"clients": [0]}),
    ],
)
def test_what_a_level_does_not_have_or_lacks_cannot_be_written(level, given_):
    with pytest.raises(TypeError, match="argument"):
        threat(level, **given_)


@pytest.mark.parametrize("level", KINDS)
def test_the_old_call_names_the_new_one(level):
    with pytest.raises(TypeError, match=f"write bounds.{KINDS[level].__name__}"):
        Threat(level, at_most=1)
    with pytest.raises(TypeError, match="one of its five classes"):
        Threat("pixel", at_most=1)


def test_flags_are_flags():
    for name in ("flips", "valid"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 1"):
            FeatureThreat(clients=[0], norm=0.1, **{name: 1})


@pytest.mark.parametrize(
    "one", [*THREATS, SampleThreat(clients=[3], input_norm=1.0, samples={3: [1, 2]})]
)
def test_a_threat_survives_json_and_pickle(one):
    assert Threat.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert replace(one, at_most=one.at_most) == one


def test_a_document_of_another_threat_is_refused():
    with pytest.raises(ValueError, match="level must be one of"):
        Threat.from_dict({"level": "pixel"})
    with pytest.raises(ValueError, match=r"a RemovalThreat has no \['rounds'\]"):
        Threat.from_dict({"level": "removal", "clients": [1], "rounds": [2]})


def test_a_threat_prints_what_is_not_as_it_is_by_default():
    one = FeatureThreat(clients=[3], rounds=[10], norm=0.1, per_batch=5, scale=(1, 2))
    assert repr(one) == (
        "FeatureThreat(clients=(3,), rounds=(10,), per_batch=5, scale=(1.0, 2.0), norm=0.1)"
    )
    assert repr(FeatureThreat(clients=[3], norm=0.1)) == "FeatureThreat(clients=(3,), norm=0.1)"
    assert repr(ClientThreat(clients=[3], at_most=1)) == "ClientThreat(clients=(3,), at_most=1)"
    assert repr(RemovalThreat(at_most=2)) == "RemovalThreat(at_most=2)"


def test_a_threat_of_ones_own_does_not_take_the_place_of_another_one():
    with pytest.raises(ValueError, match=r"level must be a name of its own.*'client'.*Softer"):

        class Softer(ClientThreat):
            level = "client"

    assert Threat.levels["client"] is ClientThreat
    assert type(Threat.from_dict({"level": "client", "at_most": 1, "rounds": [0]})) is ClientThreat
