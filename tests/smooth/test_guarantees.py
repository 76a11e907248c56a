"""Certificates against smoothed classifiers that are known exactly."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from models import LAWS, MODELS, Staircase, independent_logits
from scipy import stats
from torch import nn

from rsfl import bounds, noise
from rsfl.smooth import ABSTAIN, GaussianSmoother, Smoother

ALPHA, TRIALS = 0.05, 20_000
# where the outcome is in doubt: near an edge, between two, far from all; on the grid of 8-bit
# images
POINTS = [round(255 * x) / 255 for x in (0.1, 0.42, 0.6, 0.95)]

METHODS = {
    "certify": lambda smoother, x: smoother.certify(x, n0=10, n=100, alpha=ALPHA),
    "certify bounded": lambda smoother, x: smoother.certify(
        x, n0=10, n=100, alpha=ALPHA, runner_up="bounded"
    ),
    "predict": lambda smoother, x: smoother.predict(x, n=60, alpha=ALPHA),
    "certify_at": lambda smoother, x: smoother.certify_at(x, 0.12, n0=10, n_max=300, alpha=ALPHA),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["threshold", "staircase"])
@pytest.mark.parametrize("law", LAWS)
def test_false_certificates_are_no_more_frequent_than_alpha(law, model, method):
    model, law = MODELS[model], LAWS[law]
    each = TRIALS // len(POINTS)
    x = torch.tensor(POINTS, dtype=torch.float64).repeat_interleave(each)[:, None]
    certificate = METHODS[method](Smoother(model, law, model.num_classes), x)
    false = np.zeros(len(POINTS), dtype=int)
    for i, point in enumerate(POINTS):
        part = certificate[i * each : (i + 1) * each]
        for label in set(part.label.tolist()) - {ABSTAIN}:
            distance = model.distance_to_flip(law, point, label)
            claims = part.radius[part.label == label]
            # the ball is open; a label that is wrong at the point itself has distance 0 and is
            # false at any radius
            wrong = (claims > distance * (1 + 1e-9)) | (distance == 0)
            false[i] += int(wrong.sum())
    for count, size in [(int(false.sum()), TRIALS), *((int(f), each) for f in false)]:
        assert stats.binomtest(count, size, ALPHA, alternative="greater").pvalue > 1e-4, (
            false / each
        )


@pytest.mark.parametrize("law", LAWS)
def test_a_constant_classifier_is_certified_as_far_as_the_votes_allow(law):
    model, law = MODELS["constant"], LAWS[law]
    smoother = Smoother(model, law, 3)
    certificate = smoother.certify(torch.full((5, 1), 0.2), n0=10, n=1000, alpha=0.001)
    expected = law.radius(bounds.clopper_pearson_lower(1000, 1000, 0.001), dim=1)
    assert certificate.label.tolist() == [1] * 5
    assert certificate.radius.tolist() == [expected] * 5
    assert smoother.predict(torch.full((5, 1), 0.2), n=11).label.tolist() == [1] * 5


def test_on_a_threshold_the_certificates_fill_their_budget():
    """The bound is tight: at the boundary of what is true, certificates err almost as often as they
    may."""
    model, law = MODELS["threshold"], LAWS["gaussian"]
    x = torch.full((TRIALS, 1), 0.9)
    certificate = Smoother(model, law, 2).certify(x, n0=10, n=100, alpha=ALPHA)
    rate = float((certificate.radius > 0.4).double().mean())
    exact = float(model.smoothed(law, [0.9])[0, 1])
    k = np.arange(101)
    expected = stats.binom.pmf(k, 100, exact)[
        bounds.clopper_pearson_lower(k, 100, ALPHA) > exact
    ].sum()
    assert expected > ALPHA / 3
    assert rate == pytest.approx(expected, abs=5 * (expected / TRIALS) ** 0.5)


@pytest.mark.parametrize("name", ["gaussian", "uniform", "laplace"])
@pytest.mark.parametrize("model", ["threshold", "staircase"])
@given(x=st.floats(-1.5, 2.5), fraction=st.floats(-1, 1))
@example(x=0.9, fraction=1.0)
@example(x=0.9, fraction=-1.0)
def test_no_point_of_the_line_within_the_exact_radius_flips(name, model, x, fraction):
    model, law = MODELS[model], LAWS[name]
    g = model.smoothed(law, [x])[0]
    label = int(g.argmax())
    second = np.delete(g, label).max()
    for radius in (
        law.radius(np.clip(g[label], 0, 1)),
        law.radius(np.clip(g[label], 0, 1), np.clip(second, 0, 1)),
    ):
        if 1e-9 < radius < np.inf:
            moved = x + fraction * radius * (1 - 1e-9)
            assert model.lead(law, np.array([moved]), label)[0] >= -1e-12
        if (
            model is MODELS["threshold"] and radius > 0
        ):  # for a half line the radius is the distance to its edge
            assert radius == pytest.approx(abs(x - 0.5), rel=1e-6) or g[label] > 1 - 1e-12


@given(
    w=st.lists(st.floats(-3, 3), min_size=2, max_size=20).filter(lambda w: np.linalg.norm(w) > 0.1),
    b=st.floats(-2, 2),
    direction=st.integers(0, 2**32),
)
def test_no_direction_flips_a_linear_two_class_model_and_the_worst_one_does_just_outside(
    w, b, direction
):
    """g(x) = Phi((w.x + b) / (sigma |w|)): the certificate is the distance to the hyperplane."""
    w, law, rng = np.array(w), noise.Gaussian(0.5), np.random.default_rng(direction)
    x = rng.normal(size=len(w))

    def g(point):
        return float(stats.norm.cdf((w @ point + b) / (law.sigma * np.linalg.norm(w))))

    p = max(g(x), 1 - g(x))
    radius, side = law.radius(p), np.sign(g(x) - 0.5)
    if not 1e-6 < radius < 5 * law.sigma:
        return
    worst = -side * w / np.linalg.norm(w)
    for u in (worst, *(v / np.linalg.norm(v) for v in rng.normal(size=(40, len(w))))):
        assert side * (g(x + radius * (1 - 1e-7) * u) - 0.5) > 0
    assert side * (g(x + radius * (1 + 1e-6) * worst) - 0.5) < 0


@given(mu=st.lists(st.floats(-1, 1), min_size=3, max_size=6), direction=st.integers(0, 2**32))
def test_no_direction_flips_a_linear_model_of_many_classes(mu, direction):
    """Logits that are the coordinates: g by quadrature, with the exact two-sided radius."""
    mu, sigma, rng = np.array(mu), 0.5, np.random.default_rng(direction)
    g = independent_logits(mu, sigma)
    label = int(g.argmax())
    second = np.delete(g, label).max()
    radius = (
        bounds.cohen_radius(g[label] - 1e-12, second + 1e-12, sigma=sigma)
        if g[label] > second + 1e-9
        else 0.0
    )
    if radius < 1e-6:
        return
    rival = int(np.argsort(mu)[-2])
    worst = np.zeros(len(mu))
    worst[[label, rival]] = -1, 1
    for u in (worst, *rng.normal(size=(10, len(mu)))):
        there = independent_logits(mu + radius * (1 - 1e-9) * u / np.linalg.norm(u), sigma)
        assert there.argmax() == label


def test_votes_of_a_linear_model_of_many_classes_follow_the_quadrature():
    mu, sigma = np.array([0.3, 0.0, -0.2, 0.1]), 0.5
    counts = GaussianSmoother(nn.Identity(), sigma, 4).votes(
        torch.tensor(mu, dtype=torch.float32)[None], 100_000
    )
    assert stats.chisquare(counts[0].numpy(), independent_logits(mu, sigma) * 100_000).pvalue > 1e-4


def test_two_bounds_certify_where_one_abstains_and_the_other_way_round_they_cost_little():
    model = Staircase(
        [0.0, 1.0], [0, 1, 2], 3
    )  # in the middle of three classes: p = .68 for sigma = .5, rivals .16
    smoother = GaussianSmoother(model, 0.55, 3)
    x = torch.full((1, 1), 0.5)
    one, two = smoother.certify(x, n=20_000), smoother.certify(x, n=20_000, runner_up="bounded")
    assert torch.equal(one.counts, two.counts)
    assert float(two.radius) > 1.5 * float(one.radius)
    assert float(two.p_lower) < float(one.p_lower)  # half of alpha
    assert 0.1 < float(two.p_upper) < 0.25


def test_certify_at_agrees_with_certify_and_says_what_it_took():
    model, law = MODELS["threshold"], LAWS["gaussian"]
    smoother = Smoother(model, law, 2)
    x = torch.tensor([[0.5], [0.55], [0.7], [0.75], [0.76], [1.5], [-0.5]])
    at = smoother.certify_at(x, 0.25, n_max=20_000)
    assert at.label.tolist() == [-1, -1, -1, -1, -1, 1, 0]
    assert at.radius.tolist() == [0, 0, 0, 0, 0, 0.25, 0.25]
    assert at.n.tolist()[0] < 1000
    assert (
        at.n.tolist()[3] > 15_000
    )  # on the boundary: undecided until even unanimous votes came too late
    assert at.n.tolist()[5] == 100
    assert at.n0.tolist() == [100] * 7
    assert torch.equal(at.counts.sum(dim=1) + at.invalid, at.n)


@pytest.mark.parametrize("batch_size", [1, 64, None])
def test_certify_at_does_not_look_at_batch_boundaries(batch_size):
    model = MODELS["threshold"]
    x = torch.tensor([[0.5], [0.6], [0.7], [0.8], [1.5]])
    at = GaussianSmoother(model, 0.5, 2).certify_at(
        x, 0.2, n_max=1000, batch_size=batch_size, index=[3, 4, 5, 6, 7]
    )
    alone = [
        GaussianSmoother(model, 0.5, 2).certify_at(x[i : i + 1], 0.2, n_max=1000, index=[3 + i])
        for i in range(len(x))
    ]
    whole = type(at).cat(alone)
    for name in ("label", "radius", "counts", "n", "selection_counts"):
        assert torch.equal(getattr(at, name), getattr(whole, name))
