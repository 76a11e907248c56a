"""Noise that depends on the input: no certified label flips where the level does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rsfl import runs, verify
from rsfl._document import write
from rsfl.deform import DCT, PixelFlow, Rotation, Translation
from rsfl.noise import Gaussian, Laplace
from rsfl.smooth import (
    ABSTAIN,
    At,
    Certificate,
    DeformationSmoother,
    DualCertificate,
    DualSmoother,
    GaussianSmoother,
    ParameterSmoother,
    Smoother,
    best_levels,
)


def above(threshold, flip=False):
    """The class 1 to the right of a threshold, or 0."""
    sign = -1.0 if flip else 1.0

    def logits(x):
        return torch.stack([threshold - x[:, 0], x[:, 0] - threshold], 1) * sign

    return logits


def always(label):
    return lambda x: nn.functional.one_hot(torch.full((len(x),), label), 2).float()


def smoothed(function, sigma):
    return GaussianSmoother(function, sigma, num_classes=2)


def dual(selector=0.0, sigma=0.5):
    """Level 0 to the left of 0, where the label is 0; level 1 to the right, where it is 1 up to 2
    and 0 beyond. All of it is exact: a threshold under symmetric noise stays where it is."""
    right = smoothed(above(2.0, flip=True), 1.0)
    return DualSmoother(smoothed(above(selector), sigma), [smoothed(always(0), 0.25), right])


def exact(x):
    return np.where(x < 0, 0, np.where(x < 2, 1, 0))


def reach(x):
    """How far the exact dual label holds."""
    return np.where(x < 0, -x, np.where(x < 2, np.minimum(x, 2 - x), x - 2))


def test_labels_and_radii_are_those_of_the_exact_classifier():
    x = torch.tensor([-1.0, -0.3, 0.3, 1.0, 1.6, 2.5, 4.0])
    certificate = dual().certify(x[:, None], n=20_000)
    assert certificate.level.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert certificate.label.tolist() == exact(x.numpy()).tolist()
    true = reach(x.double().numpy())
    assert (certificate.radius.numpy() <= true).all()
    assert (certificate.radius.numpy() >= 0.8 * np.minimum(true, 1.5)).all()
    assert certificate.alpha == 0.001
    prediction = dual().predict(x[:, None], n=1000)
    assert prediction.label.tolist() == certificate.label.tolist()
    assert prediction.radius.abs().max() == 0


def failures(radius_of, runs_=400, alpha=0.2):
    """How often a radius goes beyond the exact one, close to where the level changes."""
    x = torch.full((runs_, 1), -0.1)
    certificate = dual().certify(x, n=100, n0=20, alpha=alpha)
    held = ~certificate.abstained & (certificate.label == 0)
    wrong = (radius_of(certificate).numpy() > 0.1 + 1e-7) & held.numpy()
    wrong |= (certificate.label == 1).numpy()
    return int(wrong.sum())


def test_certificates_fail_no_more_often_than_promised():
    most = stats.binom.ppf(1 - 1e-6, 400, 0.2)
    found = failures(lambda certificate: certificate.radius)
    assert 0 < found <= most, "the level is the tight part, so that some fail"

    def of_the_label(certificate):
        return certificate._gathered(lambda one: one.radius, 0.0)

    assert failures(of_the_label) > most, "the radius of the label alone is no certificate"


@pytest.mark.parametrize("seed", range(3))
def test_no_attack_within_the_radius_changes_the_label(seed):
    """A selector and levels of random networks in two dimensions: every point of a grid inside is
    predicted alike."""
    torch.manual_seed(seed)

    def net(classes):
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, classes))

    whole = DualSmoother(
        GaussianSmoother(net(2), 0.6, num_classes=2),
        [GaussianSmoother(net(3), sigma, num_classes=3) for sigma in (0.2, 0.8)],
    )
    x = torch.randn(12, 2)
    certificate = whole.certify(x, n=3000)
    assert (~certificate.abstained).sum() >= 4
    angle = torch.arange(12) * torch.pi / 6
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    tried = 0
    for one, label, radius in zip(x, certificate.label, certificate.radius, strict=True):
        if label != ABSTAIN:
            points = one + 0.999 * float(radius) * ring
            found = whole.predict(points, n=1000, seed=1).label
            assert ((found == label) | (found == ABSTAIN)).all()
            tried += 1
    assert tried >= 4


def test_it_abstains_where_either_does_and_names_what_it_rests_on():
    certificate = dual().certify(torch.tensor([[0.0], [2.0], [-1.0]]), n=1000)
    assert certificate.level.tolist() == [ABSTAIN, 1, 0]
    assert certificate.label.tolist() == [ABSTAIN, ABSTAIN, 0]
    assert certificate.radius[:2].tolist() == [0, 0]
    assert certificate.n.tolist() == [1000, 2000, 2000]
    names = [one.id for one in certificate.assumptions]
    assert len(names) == len(set(names))
    assert {"named-level", "fresh-votes", "one-function", "raw-input"} <= set(names)
    assert "Dual certificate of 3 inputs, 2 abstained: l2 radius" in repr(certificate)
    assert "alpha = 0.001 for each" in repr(certificate)
    assert runs.certified_accuracy(certificate, [0, 0, 0], 0.5) == pytest.approx(1 / 3)


def test_rows_are_those_of_the_whole():
    x = torch.tensor([[1.0], [-1.0], [0.0], [3.0], [-2.0], [1.5]])
    whole = dual().certify(x, n=500)
    for key in ([4, 0, 3], slice(1, 4), 2, torch.tensor([5, 1])):
        rows = torch.arange(6)[key].reshape(-1)
        part = whole[key]
        for name in ("label", "level", "radius", "index", "n"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
    again = dual().certify(x[4:5], n=500, index=[4])
    assert torch.equal(again.radius, whole[4].radius)


def test_a_file_keeps_both_and_is_verified(tmp_path):
    path = tmp_path / "dual.json"
    certificate = dual().certify(torch.tensor([[1.0], [-1.0], [0.0], [3.0]]), n=500)
    certificate.save(path)
    found = DualCertificate.load(path)
    for name in ("label", "level", "radius", "index", "n"):
        assert torch.equal(getattr(found, name), getattr(certificate, name)), name
    assert {a.id for a in found.assumptions} == {a.id for a in certificate.assumptions}
    assert verify.verify(path).status == 0
    content = json.loads(path.read_text())["content"]

    def forged(change):
        other = json.loads(json.dumps(content))
        change(other)
        write(tmp_path / "forged.json", "dual certificate", 1, other)
        report = verify.verify(tmp_path / "forged.json")
        assert report.status == 1, report
        with pytest.raises(ValueError, match="cannot be read as a dual certificate"):
            DualCertificate.load(tmp_path / "forged.json")

    def larger(other):  # the radius of the level alone
        other["radius"][1] = other["selected"]["radius"][1]

    def of_others(other):
        other["levels"][1]["input"][0] = "0" * 15 + "7"

    forged(larger)
    forged(of_others)
    forged(lambda other: other["label"].__setitem__(2, 1))
    forged(lambda other: other["levels"].reverse())
    forged(lambda other: other["selected"]["radius"].__setitem__(1, "9.0"))
    forged(lambda other: other["levels"][0].__setitem__("alpha", 0.4))


def test_the_level_is_of_the_selectors_own_input():
    selected, other = (smoothed(above(0.0), 0.5).certify(x, n=500) for x in NEAR_AND_FAR)
    label = int(selected.label)
    levels = [None, None]
    levels[label] = other
    with pytest.raises(ValueError, match="must be of the selector's inputs, got others under"):
        DualCertificate(selected, tuple(levels))
    with pytest.raises(ValueError, match="must be of the same inputs in one order, got others in"):
        best_levels([selected, other], torch.tensor([1]))


NEAR_AND_FAR = torch.tensor([[1.0]]), torch.tensor([[9.0]])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Translation(0.1), PixelFlow(0.1)),
        (DCT(0.1, 2), DCT(0.1, 4)),
        (Rotation(0.3), Rotation(0.3, padding="border")),
    ],
)
def test_parameters_of_two_warps_are_not_one_distance(one, other):
    """Both are l2 in half images, say; the smaller radius would be a distance of neither."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    selector, level = (DeformationSmoother(model, law, 2) for law in (one, other))
    with pytest.raises(ValueError, match="levels must measure distances as the selector's"):
        DualSmoother(selector, [selector, level])
    wider = replace(one, **{next(iter(vars(one.base))): 0.2})
    DualSmoother(selector, [selector, DeformationSmoother(model, wider, 2)])


def test_distances_at_two_places_are_not_one():
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2)).eval()
    x = torch.tensor([[9.0]])
    smoothers = [Smoother(At(model, place), Gaussian(0.1), 2) for place in "01"]
    selected, other = (one.certify(x, n=500) for one in smoothers)
    levels = [None, None]
    levels[int(selected.label)] = other
    with pytest.raises(ValueError, match=r"levels must measure as the selector does, in .*of 0"):
        DualCertificate(selected, tuple(levels))


def test_statements_about_all_inputs_know_its_alpha():
    certificate = dual().certify(torch.linspace(-2, 2, 40)[:, None], n=200, alpha=0.1)
    labels = [0] * 40
    assert runs.high_probability_accuracy(certificate, labels, 0.1) < runs.certified_accuracy(
        certificate, labels, 0.1
    )
    with pytest.raises(ValueError, match=r"alpha must be at least 0\.1, with which the cert"):
        runs.high_probability_accuracy(certificate, labels, 0.1, alpha=1e-6)


def test_best_levels_are_those_of_the_largest_radius_for_the_true_label():
    x, y = torch.tensor([[-1.0], [-0.2], [3.0], [5.0]]), torch.tensor([0, 0, 1, 0])
    small, large = (smoothed(above(0.0), sigma).certify(x, n=500) for sigma in (0.25, 1.0))
    assert best_levels([small, large], y).tolist() == [1, 0, 1, 1]
    with pytest.raises(ValueError, match=r"certificates must be of the 3 inputs of y, got \[4\]"):
        best_levels([small], y[:3])


def test_what_does_not_fit_is_named():
    one, law = smoothed(above(0.0), 0.5), Laplace(0.5)
    three = GaussianSmoother(nn.Linear(1, 3), 0.5, num_classes=3)
    for arguments, error, words in (
        ((one, [one]), ValueError, "levels must be one for each of the selector's 2 classes, got"),
        ((nn.Linear(1, 2), [one, one]), TypeError, "selector must be smoothers, such as smooth.G"),
        ((one, [one, Smoother(above(0.0), law, 2)]), ValueError, "levels must measure distances"),
        ((one, [one, three]), ValueError, "levels must have the same num_classes, got 2 and 3"),
        (
            (one, [one, ParameterSmoother(nn.Linear(1, 2), 0.1, 2)]),
            ValueError,
            "levels must be under noise on whole inputs",
        ),
        (
            (Smoother(At(nn.Sequential(nn.Linear(1, 2)), "0"), Gaussian(0.5), 2), [one, one]),
            ValueError,
            "selector must be under noise on whole inputs",
        ),
    ):
        with pytest.raises(error, match=words):
            DualSmoother(*arguments)
    certificate = dual().certify(torch.tensor([[1.0], [-1.0]]), n=500)
    with pytest.raises(ValueError, match="level 0 must be of the inputs that it was named for"):
        DualCertificate(certificate.selected, certificate.levels[::-1])
    half = replace(certificate.levels[0], alpha=0.1)
    with pytest.raises(ValueError, match=r"alpha must be shared in halves, got 0.0005 and 0.1"):
        DualCertificate(certificate.selected, (half, certificate.levels[1]))
    assert isinstance(certificate.levels[0], Certificate)


def test_the_votes_of_both_are_cast_again(tmp_path):
    path, x = tmp_path / "dual.json", torch.tensor([[1.0], [-1.0], [0.0], [3.0]])
    whole = dual()
    whole.certify(x, n=500).save(path)
    data = [(one, 0) for one in x]
    report = verify.verify(path, witness=verify.Witness(whole, data))
    assert report.status == 0, report
    assert sum("voted again" in finding.text for finding in report.findings) == 3
    other = DualSmoother(smoothed(above(0.2), 0.5), whole.levels)
    assert verify.verify(path, witness=verify.Witness(other, data)).status == 1
    swapped = DualSmoother(whole.selector, whole.levels[::-1])
    assert verify.verify(path, witness=verify.Witness(swapped, data)).status == 1
    alone = verify.verify(path, witness=verify.Witness(whole.selector, data))
    assert "a smooth.DualSmoother of as many levels votes again" in str(alone)
    selected = tmp_path / "selected.json"
    whole.selector.certify(x, n=500).save(selected)
    (wrong,) = verify.verify(selected, witness=verify.Witness(whole, data)).false
    assert "model must be a module or a smoother for this, got DualSmoother" in wrong.text
