"""Certificates made of others: what their numbers say, and what was changed in them."""

import dataclasses
import json
import shutil
import zlib

import pytest
import saved
import torch
from saved import edited, false
from torch import nn

from rsfl import assumptions, fed, noise, runs, smooth
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


@pytest.fixture(scope="module")
def orbit_run(orbit, tmp_path_factory):
    """The same orbits as a run has logged them."""
    out = tmp_path_factory.mktemp("orbits")
    _, model, data = orbit
    smoother = smooth.GaussianSmoother(model, 0.5, 2)
    run = runs.OrbitRun(Rotations(0.3), allowance=0.05, seed=7)
    runs.certify_orbits(smoother, data, run, out=out)
    return out


def test_runs_of_orbits_hold_at_all_depths(orbit, orbit_run):
    _, model, data = orbit
    report = verify(orbit_run)
    assert report.holds
    assert "votes at all centres carry the labels of 2 inputs" in str(report)
    report = verify(orbit_run, witness=Witness(model, data))
    assert all(one.holds for one in report), report
    assert {one.depth for one in report} == {"arithmetic", "evidence", "identity"}
    assert "votes at the centres of 2 of 2 inputs cast again: the same" in str(report)


def line_of_orbits(line, change):
    document = json.loads(line)
    change(document["content"])
    document["crc32"] = zlib.crc32(json.dumps(document["content"]).encode())
    return json.dumps(document)


def successes(content):
    """One vote less in each test."""
    content["ballot"]["tests"][0]["successes"][0] -= 1


ORBIT_LINES = {
    "run": (lambda c: c.__setitem__("run", "0" * 16), "votes of the run 0000"),
    "law": (lambda c: c["ballot"]["law"].__setitem__("sigma", 1.0), "law is"),
    "seed": (lambda c: c["ballot"].__setitem__("seed", 5), "seed is 5"),
    "orbit": (lambda c: c["ballot"].__setitem__("orbit", {"name": "Flips"}), "orbit is"),
    "spot check": (lambda c: c["ballot"].__setitem__("spot_checked", False), "spot_checked is"),
    "twice": (lambda c: c["ballot"]["index"].__setitem__(0, 0), "other votes for input 0"),
    "several": (lambda c: c["ballot"]["index"].append(1), "not the votes on one input"),
}


@pytest.mark.parametrize("change", ORBIT_LINES)
def test_lines_of_a_run_of_orbits_that_were_changed(orbit_run, tmp_path, change):
    out = shutil.copytree(orbit_run, tmp_path / "run")
    first, second = (out / "orbits.jsonl").read_text().splitlines()
    edit, text = ORBIT_LINES[change]
    (out / "orbits.jsonl").write_text(f"{first}\n{line_of_orbits(second, edit)}\n")
    assert any(text in one for one in false(verify(out)))
    (out / "orbits.jsonl").write_text(f"{first}\n{second.replace('seconds', 'Seconds')}\n")
    assert "the checksum does not fit" in str(false(verify(out)))


def test_made_up_votes_settings_and_images_of_a_run_of_orbits_are_found(orbit, orbit_run, tmp_path):
    _, model, data = orbit
    out = shutil.copytree(orbit_run, tmp_path / "run")
    first, second = (out / "orbits.jsonl").read_text().splitlines()
    (out / "orbits.jsonl").write_text(f"{first}\n{line_of_orbits(second, successes)}\n")
    found = verify(out, witness=Witness(model, data))
    assert "evidence" in {one.depth for one in found.false}
    (out / "orbits.jsonl").write_text(f"{first}\n{second}\n")
    settings = json.loads((out / "orbits.json").read_text())
    (out / "orbits.json").write_text(json.dumps(settings | {"allowance": 0.01}))
    assert "votes of the run" in str(false(verify(out)))
    (out / "orbits.json").write_text(json.dumps(settings))
    assert verify(out).holds
    moved = [data[0], (data[1][0] + 1e-3, 1)]
    assert "the inputs 1 are others" in str(false(verify(out, witness=Witness(model, moved))))
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    found = verify(out, witness=Witness(other, data)).false
    assert {one.depth for one in found} == {"identity", "evidence"}


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


@pytest.fixture(scope="module")
def of_groups():
    models = []
    for at in range(5):
        models.append(nn.Linear(2, 2, bias=False))
        models[-1].weight.data = torch.eye(2).roll(at // 4, dims=0)
    judge = fed.GroupJudge(fed.GroupVote(tuple(models), tuple((k,) for k in range(5)), 2))
    return JointSmoother(judge, noise.Gaussian(0.5)), torch.tensor([[3.0, 0.0], [0.0, 2.0]])


OF_GROUPS = {
    "a rung's name": lambda c: c["ballot"]["ladder"].__setitem__(1, "any 2 clients"),
    "a higher rung": lambda c: c["ballot"].__setitem__(
        "ladder", ["nobody", "any 10 clients", "any 20 clients"]
    ),
    "who clients are": lambda c: c["ballot"]["assumptions"].pop(),
    "what keeps groups apart": lambda c: c["ballot"]["assumptions"].pop(0),
    "all assumptions": lambda c: c["ballot"].__setitem__("assumptions", []),
    "other words": lambda c: c["ballot"]["assumptions"][0].__setitem__("statement", "Nothing."),
}


@pytest.mark.parametrize("change", OF_GROUPS)
def test_joint_certificates_of_groups_say_what_they_rest_on(of_groups, tmp_path, change):
    smoother, x = of_groups
    smoother.certify(x, n=500).save(tmp_path / "j.json")
    assert false(verify(tmp_path / "j.json")) == []
    assert false(verify(edited(tmp_path / "j.json", OF_GROUPS[change])))


def test_certificates_of_one_rung_say_what_it_rests_on(of_groups, tmp_path):
    smoother, x = of_groups
    smoother.at(1).certify(x, n=500).save(tmp_path / "c.json")
    assert false(verify(tmp_path / "c.json")) == []

    def unsaid(*names):
        def change(content):
            kept = [one for one in content["assumptions"] if one["id"] not in names]
            content["assumptions"] = kept

        return edited(tmp_path / "c.json", change)

    for name in ("counted-if-withstood", "given-groups", "registered-clients"):
        smoother.at(1).certify(x, n=500).save(tmp_path / "c.json")
        assert name in str(false(verify(unsaid(name))))


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
