import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from rsfl import noise, orbit, smooth
from rsfl._draws import rng
from rsfl.assumptions import ONE_RESAMPLING, ORBIT_COVER, SPLIT_ALPHA
from rsfl.orbit import Exposures, Mesh, Rotations, RotationScalings, Translations
from rsfl.smooth import (
    ABSTAIN,
    GaussianSmoother,
    OrbitBallot,
    OrbitCertificate,
    OrbitPlan,
    OrbitTests,
    Smoother,
    orbit_ballot,
)
from rsfl.smooth.orbit_tests import decisions, thresholds
from rsfl.smooth.votes import SELECTION, Votes

SIGMA = 0.5


def image(height=7, width=7, seed=0):
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def halfspace(direction, offset):
    """Class 1 where <direction, x> > offset: of the smoothed model, every radius is a distance."""
    flat = direction.flatten()
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(flat), 2))
    model[1].weight.data = torch.stack([torch.zeros_like(flat), flat]).float()
    model[1].bias.data = torch.tensor([0.0, -float(offset)])
    return model


def heights(x, family, direction, steps=4001):
    """<direction, picture> for the pictures of a fine grid, the direction of norm 1."""
    ((low, high),) = family.box
    params = torch.linspace(low, high, steps, dtype=torch.float64)[:, None]
    return family(x, params).double().flatten(1) @ direction.flatten().double()


def unit(*shape, seed=5):
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


class Known(smooth.Voter):
    """Votes of a classifier of two whose probabilities are known: no model is called."""

    def __init__(self, probability, sigma=SIGMA):
        super().__init__(noise.Gaussian(sigma), 2)
        self.probability = probability

    def count(self, x, index, start, stop, *, seed, batch_size, stage=1):
        p = self.probability(x, stage)
        successes = rng(seed, start, stage).binomial(stop - start, p)
        counts = torch.from_numpy(np.stack([stop - start - successes, successes], axis=1))
        return Votes(counts, torch.zeros(len(x), dtype=torch.int64))


# -- the promise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("allowance", [0.0, 0.2])
def test_what_holds_is_certified_and_what_does_not_is_not(allowance):
    """A half space whose border is just beyond the allowance of the nearest picture, or within."""
    family, x, direction = Rotations(0.6), image(), unit(7, 7)
    nearest = float(heights(x, family, direction).min())
    for beyond, holds in ((0.3, True), (-0.02, False)):
        model = halfspace(direction, nearest - allowance - beyond)
        certificate = GaussianSmoother(model, SIGMA, 2).certify_orbit(
            x, family, allowance=allowance, index=[3]
        )
        assert certificate.label.tolist() == [1 if holds else ABSTAIN]
        assert (certificate.allowance, certificate.alpha) == (allowance, 0.001)
        assert certificate.index.tolist() == [3]


def test_every_cell_has_a_centre_that_answers_for_it():
    family, x, direction = Rotations(0.6), image(), unit(7, 7)
    offset = float(heights(x, family, direction).min()) - 0.4
    smoother = GaussianSmoother(halfspace(direction, offset), SIGMA, 2)
    ballot = smoother.orbit_ballot(x, family)
    (tests,) = ballot.tests
    mesh = Mesh.of(family, x, tests.cells)
    assert len(tests.owner) == len(mesh)
    p0 = thresholds(smoother.law, tests.reach, 49)
    for number in np.unique(tests.owner):
        centre = family(x, torch.tensor(tests.centres[[number]]))
        own = torch.from_numpy(np.flatnonzero(tests.owner == number))
        assert float(mesh.distances(centre, own).max()) <= tests.reach[number]
        assert norm.ppf(p0[number]) * SIGMA >= tests.reach[number]
        found = decisions(
            *(np.array([v[number]]) for v in (tests.successes, tests.trials, p0)),
            np.array([tests.share[number] * 0.001]),
        )
        assert found == 1
    assert tests.share.sum() <= 1
    assert ballot.confirmed(x).all()
    assert int(ballot.votes) == int(ballot.pilot) + tests.trials.sum()


def test_a_label_that_changes_along_the_orbit_is_never_certified():
    family, x, direction = Rotations(1.2), image(), unit(7, 7)
    found = heights(x, family, direction)
    for share in (0.1, 0.5, 0.9):
        offset = float(found.quantile(share))
        model = halfspace(direction, offset)
        certificate = GaussianSmoother(model, 0.1, 2).certify_orbit(x, family)
        assert bool(certificate.abstained)


def test_two_parameters():
    x, direction = image(5, 6), unit(5, 6)
    for family in (RotationScalings(0.1, 0.05), Translations(0.05, 0.04), Exposures(0.1, 0.1)):
        params = family.sample(4000, generator=torch.Generator().manual_seed(0))
        lowest = float((family(x, params).flatten(1) @ direction.flatten()).min())
        for beyond, holds in ((0.4, True), (-0.1, False)):
            smoother = GaussianSmoother(halfspace(direction, lowest - beyond), SIGMA, 2)
            certificate = smoother.certify_orbit(x, family)
            assert bool(certificate.abstained) is not holds
            if holds:
                assert certificate.ballot.confirmed(x).all()


# -- statistics ------------------------------------------------------------------------------------


def false_share(monkeypatch, runs, alpha):
    """How often a single centre passes whose probability is exactly at its border, through all
    rounds of tests; the pilot sees nothing but its label. The geometry is that of one image, and is
    made once."""
    x, family = image(3, 3), Rotations((0.0, 0.1))
    mesh = Mesh.of(family, x, 1)
    monkeypatch.setattr("rsfl.smooth.orbit_votes.Mesh.of", lambda *_: mesh)
    plan = OrbitPlan(pilots=1, pilot_votes=40, cells=1, n_max=1500)
    reach = mesh.cover(torch.tensor([1.0, 0.0])).reach
    p0 = float(thresholds(noise.Gaussian(SIGMA), reach.numpy(), 9).item())

    def probability(pictures, stage):
        return np.ones(len(pictures)) if stage == SELECTION else np.full(len(pictures), p0)

    ballot = orbit_ballot(
        Known(probability), x.expand(runs, -1, -1, -1), family, alpha=alpha, plan=plan
    )
    certificate = ballot.certificate(alpha=alpha)
    assert {float(tests.reach[0]) for tests in ballot.tests} == {float(reach)}
    assert max(len(tests) for tests in ballot.tests) > 1  # further rounds were made
    return float((~certificate.abstained).double().mean())


def test_a_centre_at_its_border_passes_at_most_with_probability_alpha(monkeypatch):
    share = false_share(monkeypatch, 250, 0.05)
    assert 0 < share <= 0.05


@pytest.mark.slow
def test_a_centre_at_its_border_five_thousand_times(monkeypatch):
    share = false_share(monkeypatch, 5000, 0.05)
    assert 0.01 < share <= 0.05


def test_false_certificates_of_whole_orbits_are_at_most_alpha():
    """Exact votes of a half space that cuts off the farthest picture alone."""
    x, family, direction = image(5, 5), Rotations(0.3), unit(5, 5)
    offset = float(heights(x, family, direction).min()) + 1e-6
    flat = direction.flatten().double()

    def probability(pictures, stage):
        return norm.cdf((pictures.double().flatten(1) @ flat - offset).numpy() / SIGMA)

    plan = OrbitPlan(pilots=8, n_max=2000)
    ballot = orbit_ballot(
        Known(probability), x.expand(40, -1, -1, -1), family, alpha=0.05, plan=plan
    )
    assert (ballot.chosen == 1).all()
    assert float((~ballot.certificate(alpha=0.05).abstained).double().mean()) <= 0.05


def test_thresholds_are_the_law_s_own_rounded_up():
    law = noise.Gaussian(0.3)
    radius = np.array([0.0, 0.1, 0.5, 2.0])
    found = thresholds(law, radius, 1)
    for p, r in zip(found, radius, strict=True):
        assert law.radius(p) >= r
        assert p == pytest.approx(law.probability(r), abs=1.1e-9)
    assert np.isnan(thresholds(law, np.array([9.0]), 1)).all()


# -- draws, evidence and readings ------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    x = torch.cat([image(seed=seed) for seed in range(3)])
    family, direction = Rotations(0.4), unit(7, 7)
    offset = float(heights(x[:1], family, direction).min()) - 0.5
    smoother = GaussianSmoother(halfspace(direction, offset), SIGMA, 2)
    return smoother, x, family


def test_a_ballot_depends_on_seed_and_index_alone(three):
    smoother, x, family = three
    whole = smoother.orbit_ballot(x, family, seed=7, index=[4, 9, 2])
    one = smoother.orbit_ballot(x[1:2], family, seed=7, index=[9], plan=OrbitPlan(batch_size=13))
    assert one.document() == whole[1].document()
    other = smoother.orbit_ballot(x[1:2], family, seed=8, index=[9])
    assert other.document()["tests"] != one.document()["tests"]
    joined = OrbitBallot.cat([whole[:2], whole[[2]]])
    assert joined.document() == whole.document()


def test_readings_of_one_ballot(three):
    smoother, x, family = three
    ballot = smoother.orbit_ballot(x[:1], family, allowance=0.1, alpha=0.001)
    assert not ballot.certificate(allowance=0.1).abstained.any()
    assert not ballot.certificate(allowance=0.0, alpha=0.01).abstained.any()
    assert ballot.certificate(allowance=0.4).abstained.all()
    assert ballot.certificate(allowance=0.1, alpha=1e-9).abstained.all()
    assert ballot.certificate(allowance=9.0).abstained.all()


def test_a_certificate_in_text_and_file(three, tmp_path):
    smoother, x, family = three
    certificate = smoother.certify_orbit(x, family, allowance=0.01)
    text = repr(certificate)
    assert "every picture of Rotations (angle in radians in [-0.4" in text
    assert "within l2 0.0100" in text
    for assumption in (ORBIT_COVER, SPLIT_ALPHA, ONE_RESAMPLING):
        assert str(assumption) in text
    assert "<table>" in certificate._repr_html_()
    path = tmp_path / "certificate.json"
    certificate.save(path)
    loaded = OrbitCertificate.load(path)
    assert repr(loaded) == text
    assert loaded.ballot.document() == certificate.ballot.document()
    assert loaded.to_dict()["votes"].tolist() == certificate.votes.tolist()
    assert len(certificate[1:]) == 2
    assert certificate[-1].index.tolist() == [2]
    assert OrbitCertificate.cat([certificate[0], certificate[1:]]).label.tolist() == (
        certificate.label.tolist()
    )
    with pytest.raises(IndexError, match="index 3 is out of range"):
        certificate[3]


def test_labels_that_the_votes_do_not_carry_are_refused(three, tmp_path):
    smoother, x, family = three
    certificate = smoother.certify_orbit(x[:1], family)
    (tests,) = certificate.ballot.tests
    weaker = replace(tests, successes=tests.successes // 2)
    forged = replace(certificate, ballot=replace(certificate.ballot, tests=(weaker,)))
    forged.save(tmp_path / "forged.json")
    with pytest.raises(ValueError, match="votes do not carry its labels"):
        OrbitCertificate.load(tmp_path / "forged.json")
    shorter = replace(tests, reach=tests.reach * 0.9)
    assert not replace(certificate.ballot, tests=(shorter,)).confirmed(x[:1]).any()
    assert certificate.ballot.confirmed(x[:1]).all()


def test_a_ballot_survives_json(three):
    smoother, x, family = three
    ballot = smoother.orbit_ballot(x[:2], family)
    again = OrbitBallot.of_document(json.loads(json.dumps(ballot.document())))
    assert again.document() == ballot.document()
    broken = ballot.document()
    broken["tests"][0]["share"] = [1.0] * len(ballot.tests[0])
    with pytest.raises(ValueError, match="share must be at most 1 in all"):
        OrbitBallot.of_document(broken)


def test_no_votes_beyond_the_budget(three):
    smoother, x, family = three
    ballot = smoother.orbit_ballot(x[:1], family, plan=OrbitPlan(n_max=1500))
    assert int(ballot.votes) <= 1500
    assert ballot.certificate().abstained.all()
    (tests,) = ballot.tests
    assert (tests.owner < 0).any()


def test_votes_that_are_not_finite_are_no_votes():
    family, x, direction = Rotations(0.2), image(), unit(7, 7)
    model = halfspace(direction, float(heights(x, family, direction).min()) - 1)

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) / (x[:, 0, 0, 0] > 0).float()[:, None]

    ballot = GaussianSmoother(Broken(), SIGMA, 2).orbit_ballot(x * 0, family)
    (tests,) = ballot.tests
    assert tests.invalid.sum() > 0
    assert (tests.invalid + tests.successes <= tests.trials).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, x: s.certify_orbit(x, 0.5), TypeError, "family must be an orbit"),
        (lambda s, x: s.certify_orbit(x[0], Rotations(1)), ValueError, "batch of images"),
        (lambda s, x: s.certify_orbit(x, Rotations(1), allowance=-1), ValueError, "allowance must"),
        (lambda s, x: s.certify_orbit(x, Rotations(1), alpha=1), ValueError, "alpha must"),
        (
            lambda s, x: Smoother(s.model, noise.Uniform(1), 2).certify_orbit(x, Rotations(1)),
            ValueError,
            "law must be one of l2 on inputs",
        ),
        (
            lambda s, x: Smoother(s.model, noise.RoundedGaussian(1), 2).certify_orbit(
                x, Rotations(1)
            ),
            ValueError,
            "law must be one of l2 on inputs",
        ),
        (lambda s, x: OrbitPlan(pilots=0), ValueError, "pilots must"),
        (lambda s, x: OrbitBallot.cat([]), ValueError, "parts must not be empty"),
        (
            lambda s, x: s.orbit_ballot(x, Rotations(0.1)).confirmed(x[:1]),
            ValueError,
            r"x must have shape \(3, 1, 7, 7\)",
        ),
        (
            lambda s, x: OrbitTests(
                (2,), np.array([0, 3]), np.zeros((1, 1)), *(np.zeros(1) for _ in range(5))
            ),
            ValueError,
            "owner must name one of 1 centres",
        ),
    ],
)
def test_bad_input_is_named(three, call, error, words):
    smoother, x, _ = three
    with pytest.raises(error, match=words):
        call(smoother, x)


def test_the_allowance_of_eight_bits():
    """A picture of the family, saved in 8 bits, is one that a certificate speaks of."""
    x, family = image(9, 9), Rotations(0.5)
    allowance = orbit.eight_bit_allowance(x.shape[1:])
    for angle in torch.linspace(-0.5, 0.5, 7):
        picture = family(x, angle.view(1, 1))
        saved = (picture * 255).round() / 255
        assert float((saved - picture).norm()) <= allowance
    assert allowance == pytest.approx(math.sqrt(81) / 510)


def test_lower_bounds_are_what_the_tests_decide(three):
    smoother, x, family = three
    (tests,) = smoother.orbit_ballot(x[:1], family).tests
    lower = tests.lower(0.001)
    level = tests.share * 0.001
    assert (decisions(tests.successes, tests.trials, lower, level) == 1).all()
    above = np.minimum(lower + 1e-6, 1 - 1e-9)
    assert (decisions(tests.successes, tests.trials, above, level) != 1).all()
    used = np.unique(tests.owner)
    assert (lower[used] >= thresholds(smoother.law, tests.reach[used], 49) - 2e-9).all()
