import json
import math

import pytest
import torch
from torch import nn

from rsfl import noise, runs
from rsfl.orbit import Rotations
from rsfl.runs import OrbitRun
from rsfl.smooth import GaussianSmoother, OrbitPlan, Smoother

torch.manual_seed(0)
X, Y = torch.rand(6, 1, 5, 5), torch.tensor([1, 0, 1, 1, 0, 1])


def bright():
    """Class 1 where the image is bright: these are, by several sigma."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    model[1].weight.data = torch.stack([torch.zeros(25), torch.ones(25)])
    model[1].bias.data = torch.tensor([0.0, -4.0])
    return model


SMOOTHER = GaussianSmoother(bright(), 0.3, 2)
RUN = OrbitRun(Rotations(0.2), allowance=0.01, seed=3, skip=2)


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    whole, labels = runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path / "whole")
    assert labels.tolist() == [1, 1, 0]
    assert whole.index.tolist() == [0, 2, 4]
    assert whole.label.tolist() == [1, 1, 1]
    runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path / "torn", limit=1)
    log = tmp_path / "torn" / "orbits.jsonl"
    log.write_bytes(log.read_bytes() + b'{"torn')
    again, _ = runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path / "torn")
    assert again.ballot.document() == whole.ballot.document()
    assert len(log.read_bytes().splitlines()) == 3


def test_nothing_is_done_twice(tmp_path, monkeypatch):
    before, _ = runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path)
    monkeypatch.setattr("rsfl.runs.orbits._voted", lambda *_: pytest.fail("voted again"))
    after, _ = runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path)
    assert repr(after) == repr(before)


def test_other_readings_of_the_log(tmp_path):
    runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path)
    certificate, labels = runs.load_orbits(tmp_path)
    assert (certificate.allowance, certificate.alpha) == (0.01, 0.001)
    assert certificate.label.tolist() == [1, 1, 1]
    assert len(labels) == 3
    assert runs.load_orbits(tmp_path, allowance=5.0)[0].abstained.all()
    assert runs.load_orbits(tmp_path, alpha=1e-30)[0].abstained.all()
    for tests in certificate.ballot.tests:
        assert (tests.trials > 0).all()


def test_another_run_is_refused(tmp_path):
    runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path, limit=1)
    for run, words in (
        (OrbitRun(Rotations(0.3), allowance=0.01, seed=3, skip=2), "orbit is"),
        (OrbitRun(Rotations(0.2), allowance=0.01, seed=4, skip=2), "seed is"),
        (OrbitRun(Rotations(0.2), allowance=0.01, seed=3, skip=2, plan=OrbitPlan(8)), "plan is"),
    ):
        with pytest.raises(ValueError, match=f"holds another run: {words}"):
            runs.certify_orbits(SMOOTHER, (X, Y), run, out=tmp_path)
    with pytest.raises(ValueError, match="holds another run: data is"):
        runs.certify_orbits(SMOOTHER, (X.flip(0), Y), RUN, out=tmp_path)
    other = GaussianSmoother(bright(), 0.3, 2)
    other.model[1].bias.data[1] = -4.1
    with pytest.raises(ValueError, match="holds another run: model is"):
        runs.certify_orbits(other, (X, Y), RUN, out=tmp_path)


def test_votes_of_another_run_or_about_other_data_are_not_mixed_with_these(tmp_path):
    """No line named its run, and only the first input was compared."""
    runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path / "one", limit=2)
    changed = X.clone()
    changed[2] = 0
    with pytest.raises(ValueError, match="dataset is not the one of this run: input 2 is another"):
        runs.certify_orbits(SMOOTHER, (changed, Y), RUN, out=tmp_path / "one")
    unasked = GaussianSmoother(bright(), 0.3, 2, spot_check=False)
    with pytest.raises(ValueError, match="holds another run: spot_checked is"):
        runs.certify_orbits(unasked, (X, Y), RUN, out=tmp_path / "one")
    other = GaussianSmoother(bright(), 0.3, 2)
    other.model[1].bias.data[1] = -4.1
    (tmp_path / "one" / "orbits.json").unlink()
    with pytest.raises(ValueError, match=r"orbits.jsonl, line 1: votes of the run \w+ in the run"):
        runs.certify_orbits(other, (X, Y), RUN, out=tmp_path / "one")
    runs.certify_orbits(other, (X, Y), RUN, out=tmp_path / "two", limit=1)
    foreign = (tmp_path / "two" / "orbits.jsonl").read_bytes()
    runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path / "one")  # the settings are back
    with (tmp_path / "one" / "orbits.jsonl").open("ab") as log:
        log.write(foreign)
    with pytest.raises(ValueError, match=r"orbits.jsonl, line 4: votes of the run"):
        runs.load_orbits(tmp_path / "one")


def test_a_damaged_line_is_named(tmp_path):
    runs.certify_orbits(SMOOTHER, (X, Y), RUN, out=tmp_path)
    log = tmp_path / "orbits.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    content = json.loads(lines[1])
    content["content"]["label"] = 0
    log.write_bytes(lines[0] + (json.dumps(content) + "\n").encode() + lines[2])
    with pytest.raises(ValueError, match="line 2: the checksum does not fit"):
        runs.load_orbits(tmp_path)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(TypeError, match="family must be an orbit"):
        OrbitRun(math.radians(50))
    with pytest.raises(ValueError, match="holds no run of orbits"):
        runs.load_orbits(tmp_path)
    uniform = Smoother(SMOOTHER.model, noise.Uniform(0.3), 2)
    with pytest.raises(ValueError, match="input 0: the law must be one of l2"):
        runs.certify_orbits(uniform, (X, Y), RUN, out=tmp_path)
    assert not (tmp_path / "orbits.json").exists()
    with pytest.raises(TypeError, match="by index"):
        runs.certify_orbits(SMOOTHER, iter([(X[0], 1)]), RUN, out=tmp_path)
