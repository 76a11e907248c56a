"""Certificates made of others: what their numbers say, and what was changed in them."""

import dataclasses

import pytest
import saved
import torch
from saved import edited, false
from torch import nn

from rsfl import assumptions, fed, noise, smooth
from rsfl.orbit import Rotations
from rsfl.smooth import JointSmoother, Judge
from rsfl.verify import Witness, verify

# --- Orbits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orbit():
    """Images whose orbits lie on one side of a plane, up to 0.4 beyond."""
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    direction = torch.randn(36)
    direction /= direction.norm()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    model[1].weight.data = torch.stack([torch.zeros(36), direction])
    model[1].bias.data = torch.tensor([0.0, 1.2])
    smoother = smooth.GaussianSmoother(model, 0.5, 2)
    return smoother.certify_orbit(x, Rotations(0.3), allowance=0.05), model, [(one, 1) for one in x]


def test_orbits_hold(orbit, tmp_path):
    certificate, model, data = orbit
    assert not certificate.abstained.any()
    certificate.save(tmp_path / "o.json")
    report = verify(tmp_path / "o.json", witness=Witness(model, data))
    assert false(report) == []
    assert "votes at all centres carry the labels of 2 inputs" in str(report)
    assert "no picture lies farther from its centre" in str(report)
    assert "votes at the centres of 2 of 2 inputs cast again: the same" in str(report)


ORBITS = {
    "allowance": lambda c: c.__setitem__("allowance", 3.0),
    "alpha": lambda c: c.__setitem__("alpha", 1e-40),
    "label": lambda c: c["label"].__setitem__(0, 0),
    "owner": lambda c: c["ballot"]["tests"][0]["owner"].__setitem__(0, -1),
    "cells": lambda c: c["ballot"]["tests"][0]["owner"].pop(),
    "share": lambda c: c["ballot"]["tests"][0]["share"].__setitem__(0, 1.0 + 1e-9),
    "successes": lambda c: c["ballot"]["tests"][0]["successes"].__setitem__(0, 0),
    "law": lambda c: c["ballot"]["law"].__setitem__("sigma", 0.05),
    "assumption": lambda c: c["assumptions"].pop(4),
}


@pytest.mark.parametrize("change", ORBITS)
def test_orbits_that_claim_more(orbit, tmp_path, change):
    orbit[0].save(tmp_path / "o.json")
    assert false(verify(edited(tmp_path / "o.json", ORBITS[change])))


def test_pictures_that_lie_farther_are_found_with_the_images(orbit, tmp_path):
    certificate, model, data = orbit
    certificate.save(tmp_path / "o.json")

    def nearer(content):
        for tests in content["ballot"]["tests"]:
            tests["reach"] = [reach / 2 for reach in tests["reach"]]

    path = edited(tmp_path / "o.json", nearer)
    assert verify(path).holds
    (text,) = false(verify(path, witness=Witness(model, data)))
    assert "pictures of the inputs [0, 1] lie farther" in text


def test_votes_at_centres_that_were_made_up_are_found_with_the_model(orbit, tmp_path):
    certificate, model, data = orbit
    certificate.save(tmp_path / "o.json")

    def unanimous(content):
        for tests in content["ballot"]["tests"]:
            tests["trials"] = [many + 40 for many in tests["trials"]]
            tests["successes"] = [many + 40 for many in tests["successes"]]
        content["label"] = content["ballot"]["chosen"] = [0, 0]

    path = edited(tmp_path / "o.json", unanimous)
    assert verify(path).holds
    (text,) = false(verify(path, witness=Witness(model, data)))
    assert "input 0, centre 0" in text


# --- Clients and inputs at once ------------------------------------------------------------------


class Steps(Judge):
    """Label 1 to the right of 0, on a rung that grows with the distance."""

    def judged(self, x):
        return (x[:, 0] > 0).long(), x[:, 0].abs().floor().long().clamp(max=2)


@pytest.fixture(scope="module")
def joint():
    judge = Steps(2, ("nobody", "one", "two"))
    x = torch.tensor([[1.9], [-2.8], [0.05], [3.0]])
    data = [(one, 0) for one in x]
    return JointSmoother(judge, noise.Gaussian(0.5)).certify(x, n=800), judge, data


@pytest.mark.parametrize("together", [False, True])
def test_joint_certificates_hold(joint, tmp_path, together):
    certificate, judge, data = joint
    read = certificate.ballot.certificate(0.01, together=together)
    read.save(tmp_path / "j.json")
    report = verify(tmp_path / "j.json", witness=Witness(judge, data))
    assert false(report) == []
    assert "labels and radii of 3 rungs are proved" in str(report)
    assert "4 the same to a vote" in str(report)


JOINT = {
    "radius": lambda c: c["radius"][1].__setitem__(0, "1.9"),
    "label": lambda c: c["label"][2].__setitem__(1, 1),
    "abstention": lambda c: c["label"][2].__setitem__(2, 1),
    "alpha": lambda c: c.__setitem__("alpha", c["alpha"] / 2),
    "together": lambda c: c.__setitem__("together", True),
    "rungs": lambda c: c.__setitem__("rungs", [0, 2, 1]),
    "votes": lambda c: c["ballot"]["pairs"]["counts"].__setitem__(0, {"5": 801}),
}


@pytest.mark.parametrize("change", JOINT)
def test_joint_certificates_that_claim_more(joint, tmp_path, change):
    joint[0].save(tmp_path / "j.json")
    assert false(verify(edited(tmp_path / "j.json", JOINT[change])))


# --- Groups of clients ---------------------------------------------------------------------------


def groups(tmp_path):
    models = [nn.Linear(2, 3, bias=False) for _ in range(7)]
    for at, model in enumerate(models):
        model.weight.data = torch.eye(3, 2).roll(at // 3, dims=0)
    vote = fed.GroupVote(models, [[at] for at in range(7)], 3)
    vote.certify(torch.rand(5, 2)).save(tmp_path / "g.json")
    return tmp_path / "g.json"


def test_votes_of_groups_hold(tmp_path):
    report = verify(groups(tmp_path))
    assert false(report) == []
    assert "labels of 5 inputs, and the clients that they withstand, follow" in str(report)


def test_votes_of_groups_that_a_roster_dealt_hold(tmp_path):
    models = (nn.Linear(3, 2), nn.Linear(3, 2))
    apart = (assumptions.DEALT_GROUPS, assumptions.SEPARATE_GROUPS)
    vote = fed.GroupVote(models, ((0,), (1,)), 2, apart=apart)
    vote.certify(torch.rand(4, 3)).save(tmp_path / "groups.json")
    assert false(verify(tmp_path / "groups.json")) == []
    said = lambda content: content["assumptions"].pop(0)  # noqa: E731
    assert false(verify(edited(tmp_path / "groups.json", said)))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["withstands"].__setitem__(0, c["withstands"][0] + 1),
        lambda c: c["label"].__setitem__(1, (c["label"][1] + 1) % 3),
        lambda c: c["votes"].__setitem__(2, [8, 0, 0]),
        lambda c: c["assumptions"].pop(),
    ],
)
def test_votes_of_groups_that_claim_more(tmp_path, change):
    assert false(verify(edited(groups(tmp_path), change)))


# --- Ledgers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation():
    return saved.federation()


def test_ledgers_that_were_cut_or_joined(federation, tmp_path):
    run, _, _ = federation
    run.ledger.save(tmp_path / "l.json")
    assert verify(tmp_path / "l.json").holds
    cut = dataclasses.replace(run.ledger, entries=run.ledger.entries[2:])
    cut.save(tmp_path / "l.json")
    assert "rounds are missing" in str(false(verify(tmp_path / "l.json")))
    torn = edited(tmp_path / "l.json", lambda c: c["rounds"][3].__setitem__("sent_hash", "ab"))
    assert "sent other weights" in str(false(verify(torn)))
    short = edited(torn, lambda c: c["many"].__setitem__(0, 19))
    assert "not of one length" in str(false(verify(short)))
