"""Certificates against poisoned clients: what their numbers say, and what was changed in them."""

from dataclasses import replace

import pytest
import saved
from saved import edited, false

from rsfl import assumptions, bounds, fed, smooth
from rsfl.verify import Witness, verify


@pytest.fixture(scope="module")
def federation():
    return saved.federation()


THREATS = [
    bounds.RemovalThreat(at_most=1),
    bounds.FeatureThreat(clients=[3], norm=0.1, per_batch=1),
    bounds.ForensicThreat(clients=[2]),
]


@pytest.mark.parametrize("threat", THREATS, ids=lambda one: type(one).__name__)
def test_poisoning_certificates_hold_with_their_ledger(federation, tmp_path, threat):
    run, x, data = federation
    certificate = fed.certify(run.model, x, run.ledger, threat)
    run.ledger.save(tmp_path / "ledger.json")
    certificate.save(tmp_path / "p.json")
    paths = tmp_path / "p.json", tmp_path / "ledger.json"
    report = verify(*paths, witness=Witness(run.model, data))
    assert false(report) == []
    assert "is proved from 8 rounds" in str(report)
    assert "6 radii are within the margins of the model" in str(report)
    alone = verify(paths[0])
    assert alone.holds
    assert "which only the ledger can show" in str(alone)


POISON = {
    "deviation": lambda c: c.__setitem__("deviation", repr(float(c["deviation"]) * (1 - 1e-9))),
    "at_most": lambda c: c["threat"].__setitem__("at_most", 2),
    "clients": lambda c: c["threat"].__setitem__("clients", [0, 1]),
    "model": lambda c: c["certificate"].__setitem__("model", "0" * 64),
    "assumption": lambda c: c["assumptions"].pop(),
    "radius": lambda c: c["certificate"]["radius"].__setitem__(0, "nan"),
}


@pytest.mark.parametrize("change", POISON)
def test_poisoning_certificates_that_claim_more(federation, tmp_path, change):
    run, x, _ = federation
    run.ledger.save(tmp_path / "ledger.json")
    fed.certify(run.model, x, run.ledger, THREATS[0]).save(tmp_path / "p.json")
    path = edited(tmp_path / "p.json", POISON[change])
    assert false(verify(path, tmp_path / "ledger.json"))


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ({}, ""),
        ({"batch_size": 5}, "round 1: what client 0 trains on"),
        ({"fraction": 0.5}, "round 1: who takes part"),
        ({"noise_std": 0.01, "clip": 50.0}, "round 1: noise"),
        ({"sizes": dict.fromkeys(range(20), 10)}, "is not registered"),
    ],
)
def test_any_retraining_is_said_only_of_a_run_that_drew_nothing(tmp_path, settings, drawn):
    run, x, _ = saved.federation(**settings)
    run.ledger.save(tmp_path / "ledger.json")
    certificate = fed.certify(run.model, x, run.ledger, bounds.RemovalThreat(clients=[2]))
    certificate.save(tmp_path / "p.json")
    said = {one.id for one in certificate.assumptions} & {"coupled-runs", "any-retraining"}
    assert said == {"coupled-runs" if drawn else "any-retraining"}
    assert not false(verify(tmp_path / "p.json", tmp_path / "ledger.json"))
    if drawn:
        claimed = [
            assumptions.RETRAINING if a.id == "coupled-runs" else a for a in certificate.assumptions
        ]
        replace(certificate, assumptions=tuple(claimed)).save(tmp_path / "p.json")
        (text,) = false(verify(tmp_path / "p.json", tmp_path / "ledger.json"))
        assert drawn in text


def test_margins_that_claim_more_are_found_with_the_model(federation, tmp_path):
    run, x, data = federation
    smooth.margins(run.model, x).save(tmp_path / "m.json")
    assert verify(tmp_path / "m.json", witness=Witness(run.model, data)).holds
    longer = lambda c: c["radius"].__setitem__(2, repr(float(c["radius"][2]) * (1 + 1e-9)))  # noqa: E731
    path = edited(tmp_path / "m.json", longer)
    assert verify(path).holds
    (text,) = false(verify(path, witness=Witness(run.model, data)))
    assert "input 2: radius is" in text
    path = edited(path, lambda c: c["label"].__setitem__(1, 1 - c["label"][1] % 2))
    assert "is not the label of the model" in str(verify(path, witness=Witness(run.model, data)))


def test_sampled_votes_are_held_against_a_threat(federation, tmp_path):
    run, x, data = federation
    smoother = smooth.ParameterSmoother(run.model, 0.05, 3)
    held = fed.withstood(smoother.certify(x, n=200), run.ledger, THREATS[0])
    held.save(tmp_path / "p.json")
    run.ledger.save(tmp_path / "ledger.json")
    paths = tmp_path / "p.json", tmp_path / "ledger.json"
    report = verify(*paths, witness=Witness(run.model, data))
    assert false(report) == []
    assert "the same to a vote" in str(report)
