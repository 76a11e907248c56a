"""Sets keep their coverage under the worst attack on scores that are known exactly, and no more."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rsfl import assumptions, conformal
from rsfl.conformal import calibrate, level, noisy
from rsfl.noise import Gaussian, Laplace, ParameterGaussian, RoundedGaussian, Uniform

LAWS = [Gaussian(0.5), Uniform(1.0), Laplace(0.4)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the level and the threshold -------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("radius", [0.0, 0.1, 0.19])
def test_the_level_is_the_least_that_keeps_the_coverage(law, radius):
    found = level(law, 0.9, radius)
    assert law.tradeoff(found, radius) >= 0.9
    assert radius == 0 or law.tradeoff(found - 1e-9, radius) < 0.9
    if isinstance(law, Gaussian):
        expected = stats.norm.cdf(stats.norm.ppf(0.9) + radius / 0.5)
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_radius_that_no_level_reaches_is_refused():
    with pytest.raises(ValueError, match=r"radius must be one within which Uniform.*got 0.5"):
        level(Uniform(1.0), 0.9, 0.5)
    with pytest.raises(ValueError, match="radius must be one within which Gaussian"):
        level(Gaussian(0.1), 0.9, 5.0)


@pytest.mark.parametrize("n", [9, 10, 19, 39, 99, 1000])
def test_the_threshold_is_the_order_statistic_that_conformal_prediction_asks_for(n):
    scores = torch.randperm(n, generator=seeded()).double()
    rank = math.ceil((n + 1) * 0.875)
    found = calibrate(scores, Gaussian(0.5), coverage=0.875)
    assert found.value == (math.inf if rank > n else rank - 1)
    assert found.n == n


def test_too_few_scores_give_all_labels():
    found = calibrate(torch.rand(5), Gaussian(0.5), coverage=0.9)
    assert found.value == math.inf
    assert bool(found.labels(torch.rand(3, 4)).all())
    assert found.intervals(torch.zeros(1)).tolist() == [[-math.inf, math.inf]]


def test_a_score_that_is_no_number_keeps_its_label():
    found = calibrate(torch.linspace(0, 1, 100), Gaussian(0.5), coverage=0.5)
    assert found.labels(torch.tensor([[0.1, 0.9, math.nan]])).tolist() == [[True, False, True]]


# -- coverage on exactly known scores --------------------------------------------------------------


def simulated(law, radius, *, trials=25, n=400, uses=400, coverage=0.9, attacked=True):
    """Regression on a line: the label is the input, the score |y - noisy x| or its upper half, and
    the attack moves every input by the whole radius, away from its label."""
    covered, calls = 0, 0
    for trial in range(trials):
        x = torch.randn(n + uses, 1, generator=seeded(trial), dtype=torch.float64)
        y = x[:, 0]
        seen = noisy(x[:n], law, purpose="calibration", seed=trial, start=0)[:, 0]
        threshold = calibrate(y[:n] - seen, law, coverage=coverage, radius=radius)
        moved = x[n:] - (radius if attacked else 0.0)
        used = noisy(moved, law, purpose="use", seed=trial, start=0)[:, 0]
        covered += int(((y[n:] - used) <= threshold.value).sum())
        calls += uses
    return covered / calls, trials


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("radius", [0.05, 0.15])
def test_coverage_under_the_worst_attack(law, radius):
    """Half-spaces attain the curves of Gaussian and uniform noise, so there the promise is exact.

    The mean over uses varies with the calibration set: a beta law of (n + 1) draws.
    """
    found, trials = simulated(law, radius)
    at = level(law, 0.9, radius)
    slope = (law.tradeoff(at, radius) - law.tradeoff(at - 1e-4, radius)) / 1e-4
    error = math.sqrt((slope**2 * at * (1 - at) / 402 + 0.9 * 0.1 / 400) / trials)
    assert found >= 0.9 - 4 * error
    if not isinstance(law, Laplace):
        assert found <= 0.9 + 4 * error + 1.5 * slope / 401


def test_without_the_correction_the_attack_breaks_the_coverage():
    law, radius = Gaussian(0.5), 0.3
    broken = 0.0
    for trial in range(20):
        x = torch.randn(800, 1, generator=seeded(trial), dtype=torch.float64)
        seen = noisy(x[:400], law, purpose="calibration", seed=trial, start=0)[:, 0]
        threshold = calibrate(x[:400, 0] - seen, law, coverage=0.9)
        used = noisy(x[400:] - radius, law, purpose="use", seed=trial, start=0)[:, 0]
        broken += float((x[400:, 0] - used <= threshold.value).double().mean()) / 20
    assert broken < 0.8
    assert broken == pytest.approx(threshold.coverage_at(radius), abs=0.03)


def test_classes_keep_their_coverage_under_a_gradient_attack():
    """Four classes around the corners of a square; the adversary moves each input along the exact
    gradient of its own label's expected score."""
    law, radius, coverage = Gaussian(0.4), 0.25, 0.85
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)

    def scores(x):
        return (x[:, None] - corners).norm(dim=2)

    def worst(x, y):
        x = x.clone().requires_grad_()
        common = 0.4 * torch.randn(64, 1, 2, generator=seeded(9), dtype=torch.float64)
        total = (x + common - corners[y]).norm(dim=2).mean(0).sum()
        (away,) = torch.autograd.grad(total, x)
        return x.detach() + radius * away / away.norm(dim=1, keepdim=True)

    covered, size, plain = [], [], []
    for trial in range(30):
        draws = seeded(100 + trial)
        y = torch.randint(4, (800,), generator=draws)
        x = corners[y] + 0.25 * torch.randn(800, 2, generator=draws, dtype=torch.float64)
        own = scores(noisy(x[:400], law, purpose="calibration", seed=trial, start=0))
        threshold = calibrate(
            own[torch.arange(400), y[:400]], law, coverage=coverage, radius=radius
        )
        for points, kept in ((worst(x[400:], y[400:]), covered), (x[400:], plain)):
            sets = threshold.labels(scores(noisy(points, law, purpose="use", seed=trial, start=0)))
            kept.append(sets[torch.arange(400), y[400:]].double().mean().item())
        size.append(sets.double().sum(1).mean().item())
    error = math.sqrt(coverage * (1 - coverage) / 400 * 2 / 30)
    assert np.mean(covered) >= coverage - 4 * error
    assert np.mean(plain) >= threshold.level - 4 * error > coverage
    assert np.mean(covered) < np.mean(plain)
    assert 1 < np.mean(size) < 4


def test_marginal_means_marginal():
    """A class that is one in twenty may be missed always: what is promised is a mean."""
    y = (torch.arange(2000) % 20 == 0).long()
    scores = torch.stack([y.double(), torch.ones(2000).double()], dim=1)  # label 1 never fits
    own = scores[torch.arange(2000), y]
    sets = calibrate(own, Gaussian(0.5), coverage=0.9).labels(scores)
    held = sets[torch.arange(2000), y]
    assert held.double().mean() >= 0.9
    assert not held[y == 1].any()


# -- draws, text, refusals -------------------------------------------------------------------------


def test_draws_are_keyed_by_input_and_purpose():
    x = torch.rand(6, 3)
    whole = noisy(x, LAWS[0], purpose="use", seed=4, start=0)
    parts = [noisy(x[:2], LAWS[0], purpose="use", seed=4, start=0)]
    parts.append(noisy(x[2:], LAWS[0], purpose="use", seed=4, start=2))
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, noisy(x, LAWS[0], purpose="calibration", seed=4, start=0))
    assert not torch.equal(whole, noisy(x, LAWS[0], purpose="use", seed=5, start=0))
    grid = RoundedGaussian(0.25)
    with pytest.raises(ValueError, match="x must lie on the grid"):
        noisy(x, grid, purpose="use", seed=0, start=0)


def test_what_is_promised_is_said():
    found = calibrate(torch.linspace(0, 1, 500), Gaussian(0.5), coverage=0.8, radius=0.2)
    assert "marginal coverage 0.8 within l2 radius 0.2 in input units" in repr(found)
    known = {one.id for one in assumptions.register()}
    assert {one.id for one in found.assumptions} <= known
    assert {"marginal", "exchangeable", "unseen-draw"} <= {one.id for one in found.assumptions}
    assert found.coverage_at(0.0) == pytest.approx(found.level)
    assert found.coverage_at(0.2) >= 0.8
    assert found.coverage_at(0.4) < 0.8


def test_intervals_are_the_labels_whose_score_fits():
    found = conformal.Threshold(2.0, 0.9, 0.9, 0.0, 10, LAWS[0])
    centre, spread = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])
    ends, exact = found.intervals(centre, spread), torch.tensor([[0.0, 2.0], [-5.0, 3.0]]).double()
    torch.testing.assert_close(ends, exact, rtol=0, atol=1e-13)
    assert (ends[:, 0] <= exact[:, 0]).all()  # rounded outward
    assert (ends[:, 1] >= exact[:, 1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_predictions_round_no_label_out(dtype):
    """An interval in bfloat16 about 100 was [99.5, 100.5], or [100, 100], whatever the
    threshold."""
    found = conformal.Threshold(0.3, 0.9, 0.9, 0.0, 10, LAWS[0])
    (ends,) = found.intervals(torch.tensor([100.0], dtype=dtype)).tolist()
    assert ends[0] <= 99.7 <= ends[0] + 1e-9
    assert ends[1] >= 100.3 >= ends[1] - 1e-9
    assert found.intervals(torch.tensor([math.nan], dtype=dtype)).tolist() == [
        [-math.inf, math.inf]
    ]
    for spread in (0.0, -1.0, torch.tensor([-0.5])):
        with pytest.raises(ValueError, match="spread must be positive, got"):
            found.intervals(torch.tensor([1.0]), spread)


def test_a_label_whose_score_was_rounded_down_is_in():
    """One label, one prediction, one spread: every float32 score is the threshold, and a third of
    them were rounded down to it. All labels were out of their own intervals."""
    for spread in range(2, 100):
        scores = (torch.ones(100) / spread).float()
        found = calibrate(scores, LAWS[0], coverage=0.9)
        ((low, high),) = found.intervals(torch.zeros(1), torch.tensor([float(spread)])).tolist()
        assert low <= -1
        assert 1 <= high <= 1 + 1e-6


def test_noise_has_to_be_numbered():
    """In a loop over batches that all begin at 0 the noise of calibration was one draw, and sets
    that were to hold .9 of the labels held .46."""
    law, kept = Gaussian(1.0), []
    for trial in range(40):
        x = torch.zeros(100, 1)
        seen = [
            noisy(one[None], law, purpose="calibration", seed=trial, start=i)
            for i, one in enumerate(x)
        ]
        threshold = calibrate(torch.cat(seen)[:, 0], law, coverage=0.9)
        used = noisy(x, law, purpose="use", seed=trial, start=0)[:, 0]
        kept.append(float((used <= threshold.value).double().mean()))
    assert sum(kept) / 40 == pytest.approx(0.9, abs=0.02)
    with pytest.raises(TypeError, match="'start'"):
        noisy(x, law, purpose="use", seed=0)
    with pytest.raises(TypeError, match="'seed'"):  # what everybody knows is no secret
        noisy(x, law, purpose="use", start=0)


def test_scores_are_compared_with_the_threshold_itself():
    """In bfloat16 a threshold of 1.001 would be 1, and a score of 1.0 above one of 0.999."""
    found = conformal.Threshold(1 - 2.0**-12, 0.9, 0.9, 0.0, 10, LAWS[0])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert found.labels(torch.tensor([[1.0, 0.5, math.nan]], dtype=dtype)).tolist() == [
            [False, True, True]
        ]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: calibrate([0.1], LAWS[0]), TypeError, "scores must be a floating point tensor"),
        (lambda: calibrate(torch.arange(3), LAWS[0]), TypeError, "floating point tensor"),
        (lambda: calibrate(torch.rand(3, 2), LAWS[0]), ValueError, r"got \(3, 2\)"),
        (
            lambda: calibrate(torch.tensor([0.1, math.nan]), LAWS[0]),
            ValueError,
            "scores must be numbers, got nan at index 1",
        ),
        (lambda: calibrate(torch.rand(3), 0.5), TypeError, "law must be a noise.Law, such"),
        (
            lambda: calibrate(torch.rand(3), ParameterGaussian(0.5)),
            ValueError,
            "law must perturb inputs, got ParameterGaussian",
        ),
        (
            lambda: noisy(torch.rand(2, 3), ParameterGaussian(0.5), purpose="use", seed=0, start=0),
            ValueError,
            "law must perturb inputs, got ParameterGaussian",
        ),
        (
            lambda: calibrate(torch.rand(3), LAWS[0], coverage=1.0),
            ValueError,
            r"coverage must lie in \(0, 1\), got 1.0",
        ),
        (
            lambda: calibrate(torch.rand(3), LAWS[0], radius=-1),
            ValueError,
            r"radius must lie in \[0, inf\)",
        ),
        (
            lambda: noisy(torch.rand(2, 3), LAWS[0], purpose="attack", seed=0, start=0),
            ValueError,
            "purpose must be one of 'calibration', 'use'",
        ),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_law_that_pays_for_each_coordinate_is_told_how_many_there_are():
    law, scores = RoundedGaussian(0.25), torch.arange(1.0, 1000.0)
    with pytest.raises(ValueError, match="dim must be the number of coordinates"):
        calibrate(scores, law, radius=0.1)
    with pytest.raises(ValueError, match="dim must be the number of coordinates"):
        level(law, 0.9, 0.1)
    threshold = calibrate(scores, law, radius=0.1, dim=784)
    assert threshold.coverage_at(0.1) >= 0.9
